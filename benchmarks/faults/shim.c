/* What a process asks of the disk, counted and broken: loaded before libc (LD_PRELOAD), armed by `shim.py`.

   Every call that changes a file below one folder counts: opening for writing, write, pwrite, writev, fsync, fdatasync,
   rename, mkdir, symlink, unlink, rmdir, ftruncate, chmod. The n-th one ends the process by SIGKILL, before the call or,
   with `torn`, after half of the bytes of a write; or it fails with an error number, alone or with all that follow.
   Python, SQLite, Arrow and Rust all come through here. What glibc's own stdio writes (numpy's tofile) does not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF = 0, COUNT = 1, KILL = 2, FAIL_FROM = 3, FAIL_ONCE = 4 };

static int mode = OFF, error_number = 0, torn = 0;
static long target = 0, seen = 0, failed = 0;
static char prefix[PATH_MAX] = "";
static char name_of_last[64] = "";
static __thread int inside = 0;

void fault_arm(const char *below, int how, long n, int number, int half) {
    mode = OFF;
    strncpy(prefix, below, sizeof prefix - 1);
    seen = failed = 0;
    target = n, error_number = number, torn = half;
    name_of_last[0] = 0;
    mode = how;
}
void fault_off(void) { mode = OFF; }
long fault_seen(void) { return seen; }
long fault_failed(void) { return failed; }
const char *fault_last(void) { return name_of_last; }

static void die(int signal_number) {
    (void)signal_number;
    kill(getpid(), SIGKILL);
}
void fault_kill_after(double seconds) { /* of processor time */
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = die;
    sigaction(SIGPROF, &action, NULL);
    struct itimerval when = {{0, 0}, {(time_t)seconds, (suseconds_t)((seconds - (time_t)seconds) * 1e6)}};
    setitimer(ITIMER_PROF, &when, NULL);
}

static int below(const char *path) {
    size_t length = strlen(prefix);
    return length && strncmp(path, prefix, length) == 0;
}
static int path_counts(int folder, const char *path) {
    char whole[2 * PATH_MAX], base[PATH_MAX], link[64];
    if (mode == OFF || inside || !path) return 0;
    if (path[0] == '/') return below(path);
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, base, sizeof base - 1);
        if (size < 0) return 0;
        base[size] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return below(whole);
}
static int file_counts(int file) {
    char link[64], path[PATH_MAX];
    if (mode == OFF || inside) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}
/* -1: let it fail (errno is set); 0: go on; 1: do half of it, then die. */
static int gate(const char *name, int writes) {
    long now = __sync_add_and_fetch(&seen, 1);
    if (mode == KILL && now == target) {
        if (torn && writes) return 1;
        kill(getpid(), SIGKILL);
    }
    if ((mode == FAIL_FROM && now >= target) || (mode == FAIL_ONCE && now == target)) {
        if (!name_of_last[0]) strncpy(name_of_last, name, sizeof name_of_last - 1);
        __sync_add_and_fetch(&failed, 1);
        errno = error_number;
        return -1;
    }
    return 0;
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRITING (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)

#define OPEN(name, declared, given, folder)                                                                            \
    int name declared {                                                                                                \
        REAL(name);                                                                                                    \
        mode_t rights = 0;                                                                                             \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                                         \
            va_list more;                                                                                              \
            va_start(more, flags);                                                                                     \
            rights = va_arg(more, mode_t);                                                                             \
            va_end(more);                                                                                              \
        }                                                                                                              \
        if ((flags & WRITING) && path_counts(folder, path) && gate("open", 0) < 0) return -1;                          \
        return real given;                                                                                             \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, rights), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, rights), AT_FDCWD)
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, rights), at)
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, rights), at)

#define WRITE(name, declared, whole, half)                                                                             \
    ssize_t name declared {                                                                                            \
        REAL(name);                                                                                                    \
        if (file_counts(file)) {                                                                                       \
            int now = gate("write", 1);                                                                                \
            if (now < 0) return -1;                                                                                    \
            if (now > 0) {                                                                                             \
                inside = 1;                                                                                            \
                if (real half < 0) _exit(99);                                                                          \
                kill(getpid(), SIGKILL);                                                                               \
            }                                                                                                          \
        }                                                                                                              \
        return real whole;                                                                                             \
    }
WRITE(write, (int file, const void *data, size_t size), (file, data, size), (file, data, size / 2))
WRITE(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at), (file, data, size / 2, at))
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at),
      (file, data, size / 2, at))
WRITE(writev, (int file, const struct iovec *parts, int count), (file, parts, count), (file, parts, (count + 1) / 2))

#define ON_FILE(name, declared, given)                                                                                 \
    int name declared {                                                                                                \
        REAL(name);                                                                                                    \
        if (file_counts(file) && gate(#name, 0) < 0) return -1;                                                        \
        return real given;                                                                                             \
    }
ON_FILE(fsync, (int file), (file))
ON_FILE(fdatasync, (int file), (file))
ON_FILE(ftruncate, (int file, off_t size), (file, size))
ON_FILE(ftruncate64, (int file, off64_t size), (file, size))

#define ON_PATH(name, declared, given, folder, counted)                                                                \
    int name declared {                                                                                                \
        REAL(name);                                                                                                    \
        if (path_counts(folder, counted) && gate(#name, 0) < 0) return -1;                                             \
        return real given;                                                                                             \
    }
ON_PATH(rename, (const char *from, const char *to), (from, to), AT_FDCWD, to)
ON_PATH(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), b, to)
ON_PATH(mkdir, (const char *path, mode_t rights), (path, rights), AT_FDCWD, path)
ON_PATH(mkdirat, (int at, const char *path, mode_t rights), (at, path, rights), at, path)
ON_PATH(symlink, (const char *to, const char *path), (to, path), AT_FDCWD, path)
ON_PATH(chmod, (const char *path, mode_t rights), (path, rights), AT_FDCWD, path)

/* Removing gives space back: it never fails here, but a process can be killed before it. */
#define REMOVE(name, declared, given, folder, counted)                                                                 \
    int name declared {                                                                                                \
        REAL(name);                                                                                                    \
        if (mode <= KILL && path_counts(folder, counted)) gate(#name, 0);                                              \
        return real given;                                                                                             \
    }
REMOVE(unlink, (const char *path), (path), AT_FDCWD, path)
REMOVE(unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path)
REMOVE(rmdir, (const char *path), (path), AT_FDCWD, path)
