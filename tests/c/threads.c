/* Several threads use the stash while another forks, whatever they are at just then. */
#include "check.h"

#include <pthread.h>

enum { THREADS = 3, CHILDREN = 60 };

static int enough;

static void *thread(void *name)
{
    while (!__atomic_load_n(&enough, __ATOMIC_SEQ_CST))
        use((const char *)name);
    return NULL;
}

/* Looks into what the threads share, and asks the stash nothing. */
static void *busy_thread(void *plain)
{
    while (!__atomic_load_n(&enough, __ATOMIC_SEQ_CST))
        CHECK(fdstash_close(*(int *)plain) == -ENOENT);
    return NULL;
}

static void child(void)
{
    int file, taken;
    /* One that finds something held by a thread that it does not have waits for ever. */
    alarm(60);
    file = make("of a child", "");
    CHECK(fdstash_give("of a child", file) == 0);
    taken = fdstash_take("of a child");
    CHECK(taken >= 0 && same_file(taken, file));
    fdstash_cleanup();
    /* And not _exit: what the other threads had in hand is lost in a child, which valgrind would tell. */
    execl("/bin/true", "true", (char *)NULL);
}

int main(void)
{
    static char names[THREADS][16];
    pthread_t threads[THREADS], busy;
    int plain = make("plain", ""), i;
    CHECK(fdstash_init(NULL) == 0);
    for (i = 0; i < THREADS; i++) {
        snprintf(names[i], sizeof names[i], "thread%d", i);
        CHECK(pthread_create(&threads[i], NULL, thread, names[i]) == 0);
    }
    CHECK(pthread_create(&busy, NULL, busy_thread, &plain) == 0);

    for (i = 0; i < CHILDREN; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            child();
            _exit(1);
        }
        ends_well(pid);
    }

    __atomic_store_n(&enough, 1, __ATOMIC_SEQ_CST);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(pthread_join(busy, NULL) == 0);
    close(plain);
    fdstash_cleanup();
    return 0;
}
