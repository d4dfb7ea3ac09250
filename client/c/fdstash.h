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
 *   -ENOENT           there is no such entry in the stash, or none that this user may use; or the
 *                     descriptor is none that fdstash_open has opened
 *   -EACCES           this user may not do that to the entry; or a stranger has given it
 *   -EBUSY            a transaction of somebody else's holds the entry; the functions that open and
 *                     close files have waited for it for some two seconds
 *   -EINVAL           an argument is NULL or cannot be a name: that is 1 to 255 printable ASCII
 *                     characters without ':'; or the flags are not such as can be opened with
 *   -ESTALE           the stash keeps another file under that name by now
 *   -ENOTUNIQ         the stash keeps several files for that path
 *   -ENAMETOOLONG     the path is too long for the name of an entry
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

#include <sys/types.h>

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
 * Opens a file as open(2) does, but looks in the stash first: under the file's absolute path, where
 * ':', '%' and all that is not printable ASCII stand as '%' and two hexadecimal digits, and then for an
 * entry whose file had that path when it was given. Only what this user or root has given is taken. A
 * file that is not there is opened by its path, with this process's own rights, and put into the stash.
 *
 * So a program that is started again, or may not open the file any more, or finds it renamed or
 * deleted, gets the very file that it had. A regular file or block device shares neither offset nor
 * flags nor locks with what the stash keeps.
 *
 * The flags are an access mode and O_CREAT, O_APPEND, O_DIRECT, O_SYNC, O_DSYNC, O_NOATIME; O_CLOEXEC
 * and O_NOCTTY are implied. The mode is for O_CREAT, and less the umask; else 0.
 *
 * Returns the descriptor, which is close-on-exec and the caller's; close(2) closes it and no more.
 */
int fdstash_open(const char *path, int flags, mode_t mode);

/**
 * Opens the very file again that fdstash_open has opened, whatever its path is called by now, with the
 * flags given here and no others; as there, but without O_CREAT. Only when that has succeeded does the
 * descriptor, under the same number, refer to what was opened. On failure it is as it was.
 *
 * Its offset is then 0, and it has no locks; those of F_SETLK, which go with any close of the file, this
 * process has lost. Duplicates of the descriptor still refer to what was open before. What the stash
 * keeps has the new flags too, but never less access than before, so that one can go back. Access that
 * it does not have takes this user's own right to it, else -EACCES.
 *
 * Returns 0.
 */
int fdstash_reopen(int fd, int flags);

/**
 * Has the stash forget a file that fdstash_open has opened, and closes the descriptor. On failure both
 * are as they were.
 *
 * Returns 0.
 */
int fdstash_close(int fd);

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
