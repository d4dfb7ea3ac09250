/* Several processes open one file through the stash, and reopen it, all at once. */
#include "check.h"

enum { PROCESSES = 4, ROUNDS = 40 };

static void one(int start)
{
    char go;
    int round, file, own;
    CHECK(read(start, &go, 1) == 0);
    for (round = 0; round < ROUNDS; round++) {
        file = fdstash_open("shared", O_RDWR | O_CREAT, 0600);
        CHECK(file >= 0);
        CHECK(fdstash_reopen(file, round % 2 ? O_RDWR | O_DIRECT : O_RDONLY) == 0);
        own = open("shared", O_RDONLY | O_CLOEXEC);
        CHECK(same_file(file, own));
        close(own);
        close(file);
    }
    close(start);
    fdstash_cleanup();
    exit(0);
}

int main(void)
{
    pid_t children[PROCESSES];
    int start[2], i;
    CHECK(fdstash_init(NULL) == 0 && pipe(start) == 0);
    for (i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            close(start[1]);
            one(start[0]);
        }
    }

    close(start[0]);
    close(start[1]);
    for (i = 0; i < PROCESSES; i++)
        ends_well(children[i]);
    CHECK(fdstash_close(fdstash_open("shared", O_RDONLY, 0)) == 0);
    fdstash_cleanup();
    return 0;
}
