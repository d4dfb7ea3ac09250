/*
 * fdstash: keeps open file descriptors in a daemon, hands them out again, and reopens their files with
 * other flags without ever letting go of the old ones first.
 *
 * Made by cbindgen of client/c/src/lib.rs: change that, then `make header`.
 *
 * Every function that returns an int returns a value of 0 or more, or a negative errno; then nothing
 * has changed unless it says otherwise, and fdstash_error() has words for it. errno itself is left as
 * it comes. Beside what open(2) fails with:
 *
 *   -ENOENT           there is no such entry in the stash, or none that this user may use
 *   -EACCES           this user may not do that to the entry
 *   -EBUSY            a transaction of somebody else's holds the entry
 *   -EEXIST           there is an entry of that name already
 *   -EINVAL           an argument is NULL or cannot be a name: that is 1 to 255 printable ASCII
 *                     characters without ':'
 *   -EBADF            the number is no open descriptor
 *   -EMFILE           this process has no room for another descriptor
 *   -ENFILE           the stash has no room (a limit of the daemon's)
 *   -EIO              the stash could not make it lasting
 *   -ENOTCONN         fdstash_init has not been called
 *   -ECONNREFUSED     no daemon can be reached, for whatever reason
 *   -ECONNRESET       the connection was lost and the daemon did not come back within some two seconds;
 *                     fdstash_error() tells whether the call may have been carried out
 *   -EPROTO           the daemon is of another version, or no fdstashd at all
 *   -ENOTRECOVERABLE  a fault of this library, which standard error tells of; the next call connects
 *                     anew
 *
 * A daemon that dies, restarts or is upgraded is no error, unless it stays away: a call waits for it
 * and is done once. A daemon that hangs has the call hang.
 *
 * The functions may be called by any thread; calls of several are done one after the other. They start
 * no thread, install no signal handler, and never raise SIGPIPE. They are not for signal handlers, and a
 * thread must not be cancelled or longjmp out of one. A child of fork(2), also of a process of many
 * threads, may call them, and gets a connection of its own. It need not: its parent's is not touched.
 */


#ifndef FDSTASH_H
#define FDSTASH_H

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Connects this process to the stash that listens at a socket. NULL stands for the one that
 * $FDSTASH_SOCKET names, else for the user's own stash, else for the system's.
 *
 * Called again, it goes on with the stash that it is told then. A child of fork(2) need not call it:
 * its first call connects anew, to the same stash.
 *
 * Returns 0. On failure a connection that there was is as it was.
 */
int fdstash_init(const char *socket);

/**
 * Closes the connection. What the stash keeps stays there.
 */
void fdstash_cleanup(void);

/**
 * Has the stash keep a duplicate of a descriptor under a name, in place of what was there. The
 * descriptor itself stays the caller's; both share one open file description, and so its offset, its
 * flags and its locks. No other thread may close it meanwhile.
 *
 * Returns 0.
 */
int fdstash_give(const char *name, int fd);

/**
 * Takes the descriptor that is kept under a name out of the stash, which lets go of it only when it
 * has arrived here.
 *
 * Returns the descriptor, which is close-on-exec and the caller's; -ENOENT where there is none.
 */
int fdstash_take(const char *name);

/**
 * Tells what happened at the last failure in this thread, to what, and what can be done about it; an
 * empty string before the first. The string is the library's, and is there until this thread's next
 * failure.
 */
const char *fdstash_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FDSTASH_H */
