/* The daemon's serving process is killed again and again, in the midst of calls; then all of the daemon. */
#include "check.h"

#include <signal.h>

static volatile sig_atomic_t pipe_signals;

static void count(int number)
{
    (void)number;
    pipe_signals++;
}

static void every_call_is_done_all_the_same(int disk)
{
    int round, taken;
    for (round = 1; round <= 300; round++) {
        CHECK(fdstash_give("disk0", disk) == 0);
        taken = fdstash_take("disk0");
        CHECK(taken >= 0 && same_file(taken, disk));
        close(taken);
        if (round % 20 == 0)
            CHECK(puts("twenty rounds") >= 0 && fflush(stdout) == 0);
    }
}

int main(void)
{
    int disk = make("disk", "a disk"), taken;
    CHECK(fdstash_init(NULL) == 0);

    CHECK(fdstash_give("kept", disk) == 0);
    meet("kill the server");
    taken = fdstash_take("kept");
    CHECK(taken >= 0 && same_file(taken, disk));
    close(taken);

    every_call_is_done_all_the_same(disk);

    /* Were it raised, it would end this program, as it does by default. */
    meet("kill all of it");
    CHECK(fdstash_give("disk0", disk) == -ECONNREFUSED);
    FAILS(fdstash_take("disk0"), ECONNREFUSED, "start one with");
    CHECK(signal(SIGPIPE, count) != SIG_ERR);
    CHECK(fdstash_give("disk0", disk) == -ECONNREFUSED);
    CHECK(pipe_signals == 0);
    CHECK(is_open(disk));

    close(disk);
    fdstash_cleanup();
    return 0;
}
