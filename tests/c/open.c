/* Files are opened out of the stash before the file system. */
#include "check.h"

static void write_all(int fd, const char *content)
{
    CHECK(write(fd, content, strlen(content)) == (ssize_t)strlen(content));
}

static int has_content(int fd, const char *content)
{
    char got[32];
    ssize_t length = pread(fd, got, sizeof got, 0);
    return length == (ssize_t)strlen(content) && memcmp(got, content, (size_t)length) == 0;
}

static void a_file_is_made_and_found_in_the_stash(void)
{
    int first, second;
    struct stat stat;
    FAILS(fdstash_open("image", O_RDWR, 0), ENOENT, "image: No such file or directory");

    umask(022);
    first = fdstash_open("image", O_RDWR | O_CREAT, 0666);
    CHECK(first >= 0 && fcntl(first, F_GETFD) == FD_CLOEXEC);
    CHECK(fstat(first, &stat) == 0 && (stat.st_mode & 0777) == 0644);
    write_all(first, "the first");

    /* Whatever has become of its path. */
    CHECK(unlink("image") == 0);
    close(make("image", "another"));
    second = fdstash_open("image", O_RDWR, 0);
    CHECK(same_file(first, second) && has_content(second, "the first"));
    CHECK(lseek(first, 0, SEEK_CUR) == 9 && lseek(second, 0, SEEK_CUR) == 0);
    close(first);
    close(second);

    /* Nor does it matter who opened it. */
    fdstash_cleanup();
    CHECK(fdstash_init(NULL) == 0);
    first = fdstash_open("image", O_RDONLY, 0);
    CHECK(has_content(first, "the first"));
    CHECK(write(first, "x", 1) < 0 && errno == EBADF);

    CHECK(fdstash_close(first) == 0);
    CHECK(!is_open(first));
    first = fdstash_open("image", O_RDWR | O_CREAT, 0600);
    CHECK(has_content(first, "another"));
    CHECK(fdstash_close(first) == 0);
}

static void more_access_is_had_by_whom_the_file_gives_it(void)
{
    int reader, writer;
    close(make("read first", "content"));

    reader = fdstash_open("read first", O_RDONLY, 0);
    CHECK(rename("read first", "renamed") == 0);
    writer = fdstash_open("read first", O_WRONLY | O_APPEND, 0);

    CHECK(reader >= 0 && writer >= 0 && same_file(reader, writer));
    CHECK((fcntl(writer, F_GETFL) & (O_ACCMODE | O_APPEND)) == (O_WRONLY | O_APPEND));
    write_all(writer, ", and more");
    CHECK(has_content(reader, "content, and more"));
    close(writer);
    CHECK(fdstash_close(reader) == 0);
}

static void what_management_has_given_is_found_by_its_path(void)
{
    char path[4096];
    int given = make("given", "by management"), opened;
    CHECK(getcwd(path, sizeof path - 10) != NULL);
    strcat(path, "/given");
    CHECK(fdstash_give("vm7/disk0", given) == 0);
    CHECK(unlink("given") == 0);
    close(given);

    /* The kernel tells the path of what is unlinked with a remark, so it is as it was when it was given. */
    opened = fdstash_open(path, O_RDWR, 0);
    CHECK(opened >= 0 && has_content(opened, "by management"));
    CHECK(fdstash_close(opened) == 0);
    FAILS(fdstash_take("vm7/disk0"), ENOENT, "vm7/disk0");
}

static void what_others_have_put_there_is_not_closed(void)
{
    char name[4096];
    int file, other, kept;
    CHECK(getcwd(name, sizeof name - 10) != NULL);
    strcat(name, "/mine");
    file = fdstash_open("mine", O_RDWR | O_CREAT, 0600);
    other = make("theirs", "theirs");
    CHECK(fdstash_give(name, other) == 0);

    FAILS(fdstash_close(file), ESTALE, "keeps another file by now");
    CHECK(is_open(file));
    kept = fdstash_take(name);
    CHECK(kept >= 0 && same_file(kept, other));
    close(kept);
    close(other);

    /* Where it is gone, there is nothing to forget. */
    CHECK(fdstash_close(file) == 0);
}

static void any_path_has_a_name(void)
{
    int first, second, kept;
    first = fdstash_open("10:30 100% \xc3\xa4\n*", O_RDWR | O_CREAT, 0600);
    second = fdstash_open("10:30 100% \xc3\xa4\n*", O_RDWR, 0);
    CHECK(first >= 0 && second >= 0 && same_file(first, second));
    close(second);

    /* In the stash it is an entry as any other. */
    char name[4096];
    CHECK(getcwd(name, sizeof name - 50) != NULL);
    strcat(name, "/10%3a30 100%25 %c3%a4%0a*");
    kept = fdstash_take(name);
    CHECK(kept >= 0 && same_file(first, kept));
    close(kept);
    CHECK(fdstash_close(first) == 0);
}

static void what_cannot_be_is_refused(void)
{
    int plain = make("plain", "");
    char *too_long = (char *)malloc(300);
    CHECK(too_long != NULL);
    memset(too_long, 'x', 299);
    too_long[299] = '\0';

    FAILS(fdstash_open(NULL, O_RDWR, 0), EINVAL, "the path is NULL");
    FAILS(fdstash_open("plain", O_RDWR | O_TRUNC, 0), EINVAL, "cannot open with the flags 0o1000");
    FAILS(fdstash_open("new", O_RDONLY | O_CREAT, 0600), EINVAL, "O_CREAT");
    FAILS(fdstash_open(too_long, O_RDONLY, 0), ENAMETOOLONG, "no entry can be named after");
    FAILS(fdstash_close(-1), EBADF, "-1");
    FAILS(fdstash_close(plain), ENOENT, "none that fdstash_open has opened");
    CHECK(is_open(plain));
    close(plain);
    free(too_long);
}

int main(void)
{
    CHECK(fdstash_init(NULL) == 0);

    a_file_is_made_and_found_in_the_stash();
    more_access_is_had_by_whom_the_file_gives_it();
    what_management_has_given_is_found_by_its_path();
    what_others_have_put_there_is_not_closed();
    any_path_has_a_name();
    what_cannot_be_is_refused();

    fdstash_cleanup();
    return 0;
}
