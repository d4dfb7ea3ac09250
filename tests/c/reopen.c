/* A file is opened again under the same number, or it is as it was. */
#include "check.h"

#include <signal.h>
#include <time.h>

/* What of a descriptor a reopening that fails must leave. */
struct state {
    struct stat file;
    int flags, is_cloexec;
    off_t offset;
};

static struct state state_of(int fd)
{
    struct state state;
    memset(&state, 0, sizeof state);
    CHECK(fstat(fd, &state.file) == 0);
    state.flags = fcntl(fd, F_GETFL);
    state.is_cloexec = fcntl(fd, F_GETFD);
    state.offset = lseek(fd, 0, SEEK_CUR);
    return state;
}

static void is_as_it_was(int fd, struct state before)
{
    struct state now = state_of(fd);
    CHECK(now.file.st_dev == before.file.st_dev && now.file.st_ino == before.file.st_ino);
    CHECK(now.flags == before.flags && now.is_cloexec == before.is_cloexec);
    CHECK(now.offset == before.offset);
}

static int has_flags(int fd, int flags)
{
    return (fcntl(fd, F_GETFL) & (O_ACCMODE | O_DIRECT | O_SYNC | O_APPEND | O_NOATIME)) == flags;
}

static void the_number_stays_and_the_flags_change(void)
{
    static const int flags[] = {O_RDWR | O_DIRECT, O_RDWR, O_RDWR | O_SYNC, O_RDWR | O_DSYNC, O_RDONLY,
                                O_WRONLY | O_APPEND, O_RDONLY | O_DIRECT, O_RDWR | O_NOATIME, O_RDWR};
    int disk = fdstash_open("disk", O_RDWR | O_CREAT, 0600), copy = dup(disk);
    size_t i;
    CHECK(disk >= 0 && write(disk, "content", 7) == 7);
    CHECK(unlink("disk") == 0);

    for (i = 0; i < sizeof flags / sizeof *flags; i++) {
        CHECK(fdstash_reopen(disk, flags[i]) == 0);
        CHECK(has_flags(disk, flags[i]) && same_file(disk, copy));
        CHECK(lseek(disk, 0, SEEK_CUR) == 0 && lseek(copy, 0, SEEK_CUR) == 7);
        CHECK(has_flags(copy, O_RDWR) && fcntl(disk, F_GETFD) == FD_CLOEXEC);
    }
    CHECK(fcntl(disk, F_SETFD, 0) == 0 && fdstash_reopen(disk, O_RDWR) == 0);
    CHECK(fcntl(disk, F_GETFD) == 0);

    close(copy);
    CHECK(fdstash_close(disk) == 0);
}

/* Runs a program until it is killed, and returns when it runs. */
static pid_t run(const char *program)
{
    int ends[2], tries;
    char none;
    pid_t child;
    CHECK(pipe(ends) == 0 && fcntl(ends[1], F_SETFD, FD_CLOEXEC) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* The daemon, which has tried whether the file can be written, may not have closed it yet. */
        for (tries = 0; tries < 1000; tries++) {
            struct timespec moment = {0, 5000000};
            execl(program, program, "1000", (char *)NULL);
            if (errno != ETXTBSY)
                break;
            nanosleep(&moment, NULL);
        }
        _exit(1);
    }
    close(ends[1]);
    CHECK(read(ends[0], &none, 1) == 0);
    close(ends[0]);
    CHECK(waitpid(child, NULL, WNOHANG) == 0);
    return child;
}

static void end(pid_t child)
{
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

static void a_reopening_that_fails_leaves_all_as_it_was(void)
{
    int program, other, null;
    struct state before;
    pid_t running;
    CHECK(system("cp /bin/sleep sleeper && cp /bin/sleep busy") == 0);

    /* The kernel refuses. */
    program = fdstash_open("sleeper", O_RDONLY, 0);
    running = run("./sleeper");
    CHECK(lseek(program, 7, SEEK_SET) == 7);
    before = state_of(program);
    FAILS(fdstash_reopen(program, O_RDWR), ETXTBSY, "the stash is as it was");
    is_as_it_was(program, before);
    end(running);
    CHECK(fdstash_reopen(program, O_RDWR) == 0);
    CHECK(fdstash_close(program) == 0);

    /* The stash refuses: when it was given, nobody could write it. */
    running = run("./busy");
    program = fdstash_open("busy", O_RDONLY, 0);
    CHECK(program >= 0);
    before = state_of(program);
    FAILS(fdstash_reopen(program, O_RDWR), EACCES, "not allowed to reopen");
    is_as_it_was(program, before);
    end(running);
    CHECK(fdstash_close(program) == 0);

    /* The device has no such thing. */
    null = fdstash_open("/dev/null", O_RDWR, 0);
    before = state_of(null);
    FAILS(fdstash_reopen(null, O_RDWR | O_DIRECT), EINVAL, "/dev/null");
    is_as_it_was(null, before);
    CHECK(fdstash_close(null) == 0);

    /* It is none of fdstash_open's; or one whose number is another file's now. */
    other = make("other", "");
    before = state_of(other);
    FAILS(fdstash_reopen(other, O_RDWR), ENOENT, "none that fdstash_open has opened");
    is_as_it_was(other, before);
    FAILS(fdstash_reopen(-1, O_RDWR), EBADF, "-1");
    program = fdstash_open("sleeper", O_RDONLY, 0);
    CHECK(dup2(other, program) == program);
    FAILS(fdstash_reopen(program, O_RDWR), ENOENT, "none that fdstash_open has opened");
    close(program);
    close(other);
    close(fdstash_open("sleeper", O_RDONLY, 0));
}

static void a_child_can_reopen_what_its_parent_has_opened(void)
{
    int disk = fdstash_open("disk", O_RDWR | O_CREAT, 0600);
    pid_t child = fork();
    CHECK(disk >= 0 && child >= 0);
    if (child == 0) {
        CHECK(fdstash_reopen(disk, O_RDWR | O_DIRECT) == 0 && has_flags(disk, O_RDWR | O_DIRECT));
        close(disk);
        fdstash_cleanup();
        exit(0);
    }
    ends_well(child);

    CHECK(has_flags(disk, O_RDWR));
    CHECK(fdstash_reopen(disk, O_RDONLY) == 0 && has_flags(disk, O_RDONLY));
    CHECK(fdstash_close(disk) == 0);
}

static void a_daemon_that_is_killed_is_no_error(void)
{
    int disk = fdstash_open("disk", O_RDWR | O_CREAT, 0600), copy = dup(disk), round;
    for (round = 1; round <= 200; round++) {
        int flags = O_RDWR | (round % 2 ? O_DIRECT : 0);
        CHECK(fdstash_reopen(disk, flags) == 0);
        CHECK(has_flags(disk, flags) && same_file(disk, copy));
        if (round % 20 == 0)
            CHECK(puts("twenty rounds") >= 0 && fflush(stdout) == 0);
    }
    close(copy);
    close(disk);
}

static void a_daemon_that_is_gone_leaves_all_as_it_was(void)
{
    int disk = fdstash_open("disk", O_RDWR, 0);
    struct state before;
    CHECK(disk >= 0 && write(disk, "content", 7) == 7);
    before = state_of(disk);

    meet("kill all of it");
    FAILS(fdstash_reopen(disk, O_RDWR | O_DIRECT), ECONNREFUSED, "no daemon can be reached");
    FAILS(fdstash_close(disk), ECONNREFUSED, "no daemon can be reached");
    FAILS(fdstash_open("disk", O_RDWR, 0), ECONNREFUSED, "no daemon can be reached");
    is_as_it_was(disk, before);
    close(disk);
}

static void there_is_one_thread(void)
{
    struct stat tasks;
    CHECK(stat("/proc/self/task", &tasks) == 0 && tasks.st_nlink == 3);
}

int main(void)
{
    CHECK(fdstash_init(NULL) == 0);

    the_number_stays_and_the_flags_change();
    a_reopening_that_fails_leaves_all_as_it_was();
    a_child_can_reopen_what_its_parent_has_opened();
    a_daemon_that_is_killed_is_no_error();
    a_daemon_that_is_gone_leaves_all_as_it_was();
    there_is_one_thread();

    fdstash_cleanup();
    return 0;
}
