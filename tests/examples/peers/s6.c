/* A client of s6-fdholder-daemon, by libs6 as its users have it: a peer like the others.

   s6 SOCKET DAEMON HELD IDLE: has the daemon hold so many descriptors, opens so many connections that say
   nothing, and does what its standard input says. Sixteen requests ahead are written by hand, since libs6
   waits for each answer. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <s6/config.h>
#include <s6/fdholder.h>
#include <skalibs/genalloc.h>
#include <skalibs/stralloc.h>
#include <skalibs/tai.h>

enum { MOST = 253, AHEAD = 16, SAMPLES = 1 << 16 };

static s6_fdholder_t stash = S6_FDHOLDER_ZERO;
static tain deadline;
static const char *path;
static int null, plain = -1; /* plain: a connection without libs6 */
static char id[64];     /* this process's own */

static void check(int good, const char *what)
{
    if (good) return;
    fprintf(stderr, "s6: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* When nobody is there any more. Each has its own, since the daemon looks for a free one else. */
static tain never(void)
{
    tain limit;
    tain_now_g();
    tain_add_g(&limit, &tain_infinite_relative);
    return limit;
}

static void start(s6_fdholder_t *on)
{
    static const s6_fdholder_t none = S6_FDHOLDER_ZERO;
    *on = none;
    tain_now_g();
    tain_add_g(&deadline, &tain_infinite_relative);
    check(s6_fdholder_start_g(on, path, &deadline), "connect");
}

static void store(s6_fdholder_t *on)
{
    tain limit = never();
    check(s6_fdholder_store_g(on, null, id, &limit, &deadline), "store");
}

static void retrieve(void)
{
    int fd = s6_fdholder_retrieve_delete_g(&stash, id, &deadline);
    check(fd >= 0 && close(fd) == 0, "retrieve");
}

static void delete(void)
{
    check(s6_fdholder_delete_g(&stash, id, &deadline), "delete");
}

static void dump(unsigned int first, unsigned int count)
{
    static s6_fdholder_fd_t entries[MOST];
    const tain limit = never();
    for (unsigned int i = 0; i < count; i++) {
        snprintf(entries[i].id, sizeof entries[i].id, "vm-%05u/disk0", first + i);
        entries[i].fd = null;
        entries[i].limit = limit;
        entries[i].limit.nano = first + i;
    }
    check(s6_fdholder_setdump_g(&stash, entries, count, &deadline), "setdump");
}

static int connection(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    check(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, path);
    return fd;
}

/* The operations: each says how long it took. */

static uint64_t op_give(void)
{
    uint64_t began = now(), took;
    store(&stash);
    took = now() - began;
    delete();
    return took;
}

static uint64_t op_take(void)
{
    store(&stash);
    uint64_t began = now();
    retrieve();
    return now() - began;
}

static uint64_t op_cycle(void)
{
    uint64_t began = now();
    store(&stash);
    retrieve();
    return now() - began;
}

static uint64_t op_conn_give(void)
{
    s6_fdholder_t own;
    uint64_t began = now(), took;
    start(&own);
    store(&own);
    s6_fdholder_end(&own);
    took = now() - began;
    delete();
    return took;
}

static uint64_t op_give253(void)
{
    uint64_t began = now();
    dump(0, MOST);
    return now() - began;
}

/* A copy of all that is held, which must be as many. */
static uint64_t op_take253(void)
{
    genalloc got = GENALLOC_ZERO;
    uint64_t began = now(), took;
    check(s6_fdholder_getdump_g(&stash, &got, &deadline), "getdump");
    size_t count = genalloc_len(s6_fdholder_fd_t, &got);
    for (size_t i = 0; i < count; i++) close(genalloc_s(s6_fdholder_fd_t, &got)[i].fd);
    took = now() - began;
    check(count == MOST, "getdump of as many as a message carries");
    genalloc_free(s6_fdholder_fd_t, &got);
    return took;
}

/* On a connection of its own: a long answer can leave one in a state that is good for nothing else. */
static uint64_t op_list(void)
{
    s6_fdholder_t own;
    stralloc names = STRALLOC_ZERO;
    start(&own);
    uint64_t began = now(), took;
    check(s6_fdholder_list_g(&own, &names, &deadline) > 0, "list");
    took = now() - began;
    stralloc_free(&names);
    s6_fdholder_end(&own);
    return took;
}

/* A message as s6 has it: the length and the number of descriptors, six bytes, and then the request. */
static size_t message(char *at, const char *request, size_t length, int fds)
{
    const unsigned char head[6] = { 0, 0, (unsigned char)(length >> 8), (unsigned char)length, 0, (unsigned char)fds };
    memcpy(at, head, sizeof head);
    memcpy(at + sizeof head, request, length);
    return sizeof head + length;
}

static size_t request(char *at, int which, int is_store)
{
    char text[64];
    size_t length = 0;
    text[length++] = is_store ? 'S' : 'R';
    if (is_store) {
        tain limit = never();
        limit.nano = (unsigned int)which;
        tain_pack(text + length, &limit);
        length += TAIN_PACK;
    } else {
        text[length++] = 1; /* and delete it */
    }
    text[length++] = 4;
    length += (size_t)snprintf(text + length, sizeof text - length, "a%03d", which) + 1;
    return message(at, text, length, is_store);
}

static void send_with(const char *bytes, size_t length)
{
    char control[CMSG_SPACE(sizeof null)] = { 0 };
    struct iovec part = { (char *)bytes, length };
    struct msghdr with = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    struct cmsghdr *head = CMSG_FIRSTHDR(&with);
    *head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof null) };
    memcpy(CMSG_DATA(head), &null, sizeof null);
    check(sendmsg(plain, &with, MSG_NOSIGNAL) == (ssize_t)length, "sendmsg");
}

/* Answers are as long as this; the last byte is 0 where all is well. */
enum { ANSWER = 7 };

static void answers_alone(void)
{
    char bytes[AHEAD * ANSWER];
    for (size_t came = 0; came < sizeof bytes;) {
        ssize_t read_now = read(plain, bytes + came, sizeof bytes - came);
        check(read_now > 0, "read");
        came += (size_t)read_now;
    }
    for (int i = 0; i < AHEAD; i++) check(bytes[i * ANSWER + ANSWER - 1] == 0, "an answer");
}

static void answers_with_fds(void)
{
    for (int i = 0; i < AHEAD; i++) {
        char bytes[ANSWER], control[CMSG_SPACE(MOST * sizeof null)];
        struct iovec part = { bytes, sizeof bytes };
        struct msghdr with = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
        ssize_t came = recvmsg(plain, &with, MSG_CMSG_CLOEXEC);
        struct cmsghdr *head = CMSG_FIRSTHDR(&with);
        int fd;
        check(came == ANSWER && bytes[ANSWER - 1] == 0 && head, "an answer with a descriptor");
        memcpy(&fd, CMSG_DATA(head), sizeof fd);
        close(fd);
    }
}

static uint64_t ahead(int is_take)
{
    char bytes[AHEAD][64], all[AHEAD * 64];
    size_t length[AHEAD], total = 0;
    if (plain < 0) plain = connection();
    for (int i = 0; i < AHEAD; i++) length[i] = request(bytes[i], i, 1);
    uint64_t began = now();
    for (int i = 0; i < AHEAD; i++) send_with(bytes[i], length[i]);
    answers_alone();
    uint64_t gave = now() - began;
    for (int i = 0; i < AHEAD; i++) total += request(all + total, i, 0);
    began = now();
    check(write(plain, all, total) == (ssize_t)total, "write");
    answers_with_fds();
    return is_take ? now() - began : gave;
}

static uint64_t op_pipe16_give(void) { return ahead(0); }
static uint64_t op_pipe16_take(void) { return ahead(1); }

static const struct { const char *name; uint64_t (*run)(void); } operations[] = {
    { "give", op_give }, { "take", op_take }, { "cycle", op_cycle }, { "conn_give", op_conn_give },
    { "give253", op_give253 }, { "take253", op_take253 }, { "list", op_list },
    { "pipe16_give", op_pipe16_give }, { "pipe16_take", op_pipe16_take },
};

static int by_time(const void *a, const void *b)
{
    uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;
    return one < other ? -1 : one > other;
}

static void measure(uint64_t (*run)(void), unsigned int milliseconds)
{
    static uint64_t times[SAMPLES];
    uint64_t sum = 0, until;
    size_t count = 0;
    run(); /* the first one is not counted */
    until = now() + milliseconds * 1000000ull;
    do sum += times[count++] = run(); while (count < SAMPLES && now() < until);
    /* What is there but says nothing costs the daemon time. */
    if (plain >= 0) close(plain);
    plain = -1;
    qsort(times, count, sizeof *times, by_time);
    printf("%zu %llu %llu %llu\n", count, (unsigned long long)sum,
        (unsigned long long)times[count / 2], (unsigned long long)times[count * 99 / 100]);
}

int main(int argc, char **argv)
{
    char line[128], word[64];
    unsigned int milliseconds;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) return puts(S6_VERSION) < 0;
    if (argc != 5) return 2;
    path = argv[1];
    snprintf(id, sizeof id, "bench/%d", (int)getpid());
    null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    start(&stash);
    unsigned int held = (unsigned int)atoi(argv[3]);
    for (unsigned int at = 0; at < held; at += MOST) dump(at, held - at < MOST ? held - at : MOST);
    for (int idle = atoi(argv[4]); idle > 0; idle--) connection();
    op_cycle(); /* answered, so all of them are accepted */
    printf("ready %s %d\n", argv[2], (int)getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        check(sscanf(line, "%63s %u", word, &milliseconds) == 2, line);
        size_t at = 0, known = sizeof operations / sizeof *operations;
        while (at < known && strcmp(word, operations[at].name)) at++;
        if (at < known) measure(operations[at].run, milliseconds);
        else puts("unsupported");
        fflush(stdout);
    }
    return 0;
}
