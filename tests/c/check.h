/* What the programs here are made of. Each tells a story to the end and exits with 0, or says which line
 * of it does not hold. It includes this first. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <fdstash.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) check((what), __FILE__, __LINE__, #what)
/* That a call of the library fails so, and that its words say something of the matter. */
#define FAILS(call, why, words) check_failure((call), -(why), (words), __FILE__, __LINE__, #call)

static inline void check(int holds, const char *file, int line, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s:%d: this does not hold: %s (stash: %s; errno: %s)\n", file, line, what,
            fdstash_error(), strerror(errno));
    exit(1);
}

static inline void check_failure(int is, int should, const char *words, const char *file, int line,
                                 const char *call)
{
    if (is == should && strstr(fdstash_error(), words) != NULL)
        return;
    fprintf(stderr, "%s:%d: %s is %d and should be %d, its words \"%s\" should have \"%s\"\n", file, line,
            call, is, should, fdstash_error(), words);
    exit(1);
}

/* Makes a file in the folder where the story plays, and opens it. */
static inline int make(const char *path, const char *content)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, content, strlen(content)) == (ssize_t)strlen(content));
    return fd;
}

/* Whether two descriptors refer to one file. */
static inline int same_file(int one, int other)
{
    struct stat a, b;
    CHECK(fstat(one, &a) == 0 && fstat(other, &b) == 0);
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static inline int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* Tells the test that the story has come so far, and waits until it may go on. */
static inline void meet(const char *where)
{
    CHECK(puts(where) >= 0 && fflush(stdout) == 0);
    CHECK(getchar() == '\n');
}

/* Waits until a child has ended, which must be well. */
static inline void ends_well(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Gives and takes a file of the caller's own, again and again. */
static inline void use(const char *name)
{
    int file = make(name, name), round, taken;
    for (round = 0; round < 40; round++) {
        CHECK(fdstash_give(name, file) == 0);
        taken = fdstash_take(name);
        CHECK(taken >= 0 && same_file(taken, file));
        close(taken);
    }
    close(file);
}

#endif
