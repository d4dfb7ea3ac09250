/* Descriptors are given and taken, and what cannot be says why not. */
#include "check.h"

static void nothing_is_done_before_the_beginning(void)
{
    CHECK(strcmp(fdstash_error(), "") == 0);
    FAILS(fdstash_give("disk0", 0), ENOTCONN, "call fdstash_init first");
    FAILS(fdstash_take("disk0"), ENOTCONN, "call fdstash_init first");
    FAILS(fdstash_init("no/such/socket"), ECONNREFUSED, "no daemon can be reached at no/such/socket");
    fdstash_cleanup();
}

static void what_was_given_is_taken_once(void)
{
    int disk = make("disk", "a disk"), other = make("other", "another"), taken;

    CHECK(fdstash_give("disk0", disk) == 0);
    CHECK(is_open(disk));
    CHECK(fdstash_give("disk0", other) == 0);
    CHECK(fdstash_give("disk1", disk) == 0);

    taken = fdstash_take("disk0");
    CHECK(taken >= 0 && same_file(taken, other));
    CHECK(fcntl(taken, F_GETFD) == FD_CLOEXEC);
    FAILS(fdstash_take("disk0"), ENOENT, "there is no entry \"disk0\"; ");
    close(taken);

    taken = fdstash_take("disk1");
    CHECK(same_file(taken, disk));
    CHECK(lseek(disk, 2, SEEK_SET) == 2 && lseek(taken, 0, SEEK_CUR) == 2);
    close(taken);
    close(disk);
    close(other);
}

static void a_pipe_is_kept_as_well(void)
{
    int ends[2], taken;
    char got[4];
    CHECK(pipe(ends) == 0);

    CHECK(fdstash_give("reader", ends[0]) == 0);
    close(ends[0]);
    CHECK(write(ends[1], "word", 4) == 4);
    close(ends[1]);

    taken = fdstash_take("reader");
    CHECK(read(taken, got, 4) == 4 && memcmp(got, "word", 4) == 0);
    CHECK(read(taken, got, 4) == 0);
    close(taken);
}

static void bad_arguments_are_refused(void)
{
    int closed = make("disk", "");
    close(closed);

    FAILS(fdstash_give(NULL, 0), EINVAL, "the name is NULL");
    FAILS(fdstash_take(NULL), EINVAL, "the name is NULL");
    FAILS(fdstash_give("a:b", 0), EINVAL, "\"a:b\" cannot be a name");
    FAILS(fdstash_take(""), EINVAL, "1 to 255 printable");
    FAILS(fdstash_take("k\xc3\xa4se"), EINVAL, "printable ASCII");
    FAILS(fdstash_take("not \xff UTF-8"), EINVAL, "printable ASCII");
    FAILS(fdstash_give("disk0", -1), EBADF, "-1 is no open descriptor");
    FAILS(fdstash_give("disk0", closed), EBADF, "is no open descriptor");
}

static void what_is_kept_outlives_the_connection(void)
{
    int disk = make("disk", ""), taken;
    CHECK(fdstash_give("disk0", disk) == 0);

    fdstash_cleanup();
    fdstash_cleanup();
    FAILS(fdstash_take("disk0"), ENOTCONN, "fdstash_init");
    CHECK(fdstash_init(getenv("FDSTASH_SOCKET")) == 0);
    FAILS(fdstash_init("no/such/socket"), ECONNREFUSED, "no/such/socket");

    taken = fdstash_take("disk0");
    CHECK(same_file(taken, disk));
    close(taken);
    close(disk);
}

int main(void)
{
    nothing_is_done_before_the_beginning();

    CHECK(fdstash_init(NULL) == 0);
    what_was_given_is_taken_once();
    a_pipe_is_kept_as_well();
    bad_arguments_are_refused();
    what_is_kept_outlives_the_connection();

    fdstash_cleanup();
    return 0;
}
