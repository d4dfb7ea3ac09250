/* Children of a fork use the stash while their parent does, each over a connection of its own. */
#include "check.h"

#include <sys/socket.h>
#include <sys/un.h>

enum { CHILDREN = 4 };

/* The inode of this process's one connection to the stash, or 0 if it has none. */
static ino_t connection(void)
{
    ino_t found = 0;
    int fd;
    for (fd = 0; fd < 256; fd++) {
        struct sockaddr_un peer;
        socklen_t length = sizeof peer;
        struct stat stat;
        memset(&peer, 0, sizeof peer);
        if (getpeername(fd, (struct sockaddr *)&peer, &length) != 0 || peer.sun_family != AF_UNIX ||
            strcmp(peer.sun_path, getenv("FDSTASH_SOCKET")) != 0)
            continue;
        CHECK(found == 0 && fstat(fd, &stat) == 0);
        found = stat.st_ino;
    }
    return found;
}

static void child_uses(const char *name, ino_t parents)
{
    use(name);
    CHECK(connection() != 0 && connection() != parents);
    fdstash_cleanup();
    CHECK(connection() == 0);
    exit(0);
}

static void a_child_has_a_connection_of_its_own(void)
{
    ino_t own = connection();
    pid_t children[CHILDREN];
    char name[16];
    int i;
    CHECK(own != 0);

    for (i = 0; i < CHILDREN; i++) {
        snprintf(name, sizeof name, "child%d", i);
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0)
            child_uses(name, own);
    }
    use("parent");
    for (i = 0; i < CHILDREN; i++)
        ends_well(children[i]);

    use("parent");
    CHECK(connection() == own);
}

static void a_child_that_only_cleans_up_leaves_its_parents_connection(void)
{
    ino_t own = connection();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        fdstash_cleanup();
        CHECK(connection() == 0);
        FAILS(fdstash_take("none"), ENOTCONN, "fdstash_init");
        exit(0);
    }
    ends_well(child);

    use("parent");
    CHECK(connection() == own);
}

int main(void)
{
    CHECK(fdstash_init(NULL) == 0);

    a_child_has_a_connection_of_its_own();
    a_child_that_only_cleans_up_leaves_its_parents_connection();

    fdstash_cleanup();
    return 0;
}
