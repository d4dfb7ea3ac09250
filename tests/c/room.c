/* A process without room for another descriptor loses none. */
#include "check.h"

#include <sys/resource.h>

enum { MOST = 64 };

int main(void)
{
    struct rlimit limit = {MOST, MOST};
    int disk = make("disk", ""), last, fd, taken;
    CHECK(fdstash_init(NULL) == 0);
    CHECK(fdstash_give("disk0", disk) == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (last = -1; (fd = dup(disk)) >= 0; last = fd)
        ;
    CHECK(errno == EMFILE && last >= 0);

    FAILS(fdstash_take("disk0"), EMFILE, "no room for more descriptors; close some");
    FAILS(fdstash_open("disk", O_RDWR, 0), EMFILE, "");
    close(last);

    taken = fdstash_take("disk0");
    CHECK(taken == last && same_file(taken, disk));
    fdstash_cleanup();
    return 0;
}
