/* The daemon reads no more, and the descriptor is sent to it all the same: that raises SIGPIPE, which
 * ends a program that has not said what else it wants. */
#include "check.h"

#include <signal.h>

int main(void)
{
    int disk = make("disk", "");
    sigset_t pipe_signal, pending, blocked;
    CHECK(fdstash_init(NULL) == 0);

    meet("read no more");
    CHECK(puts("sending") >= 0 && fflush(stdout) == 0);
    CHECK(fdstash_give("disk0", disk) == -ECONNREFUSED);

    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 0);
    CHECK(sigprocmask(SIG_BLOCK, NULL, &blocked) == 0 && sigismember(&blocked, SIGPIPE) == 0);

    /* One that waited here before is not the library's to take. */
    CHECK(sigemptyset(&pipe_signal) == 0 && sigaddset(&pipe_signal, SIGPIPE) == 0);
    CHECK(sigprocmask(SIG_BLOCK, &pipe_signal, NULL) == 0 && raise(SIGPIPE) == 0);
    CHECK(fdstash_give("disk0", disk) == -ECONNREFUSED);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1);

    close(disk);
    fdstash_cleanup();
    return 0;
}
