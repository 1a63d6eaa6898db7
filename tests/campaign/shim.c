/* Preloaded into a stage: counts what it asks of the disk below CAMPAIGN_ROOT, and at the event CAMPAIGN_AT kills the
   process or, from there on, says that the disk is full.

   CAMPAIGN_MODE  count | before | after | half | full    (half: of a write the first half is done)
   CAMPAIGN_LOG   prefix of a file for each process: one letter an event
                  o create, w write, t truncate, f fsync, r rename, u unlink or rmdir, m mkdir */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *root, *mode = "count";
static long at = -1, seen = 0;
static int log_fd = -1;
static __thread int inside = 0;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void begin_log(void) {
    char path[PATH_MAX];
    const char *prefix = getenv("CAMPAIGN_LOG");
    if (prefix == NULL) return;
    snprintf(path, sizeof path, "%s.%d", prefix, getpid());
    log_fd = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

__attribute__((constructor)) static void begin(void) {
    root = getenv("CAMPAIGN_ROOT");
    if (getenv("CAMPAIGN_MODE")) mode = getenv("CAMPAIGN_MODE");
    if (getenv("CAMPAIGN_AT")) at = atol(getenv("CAMPAIGN_AT"));
    begin_log();
}

static int below(const char *path) { return root && strncmp(path, root, strlen(root)) == 0; }

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

static int at_below(int folder, const char *path) {
    return path && (path[0] == '/' ? below(path) : folder != AT_FDCWD && fd_below(folder));
}

/* 1 where the call must fail for want of space; *torn is set where half of a write is to be done before the end */
static int event(char kind, int *torn) {
    if (log_fd >= 0 && write != NULL) REAL(write)(log_fd, &kind, 1);
    long number = __sync_fetch_and_add(&seen, 1);
    if (strcmp(mode, "full") == 0) return at >= 0 && number >= at && strchr("owm", kind) != NULL;
    if (number != at) return 0;
    if (strcmp(mode, "before") == 0) kill(getpid(), SIGKILL);
    if (strcmp(mode, "half") == 0 && kind == 'w') *torn = 1;
    else *torn = 2; /* the call, and then the end */
    return 0;
}

#define DYING(torn) do { if (torn) { kill(getpid(), SIGKILL); pause(); } } while (0)

#define PATH_CALL(kind, is_ours, call) do { \
    int torn = 0; \
    if (inside || !(is_ours)) return call; \
    inside = 1; int full = event(kind, &torn); inside = 0; \
    if (full) { errno = ENOSPC; return -1; } \
    __typeof__(call) result = call; \
    DYING(torn); \
    return result; } while (0)

#define WRITE_CALL(fd, whole, part) do { \
    int torn = 0; \
    if (inside || !fd_below(fd)) return whole; \
    inside = 1; int full = event('w', &torn); inside = 0; \
    if (full) { errno = ENOSPC; return -1; } \
    ssize_t result = torn == 1 ? part : whole; \
    DYING(torn); \
    return result; } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    WRITE_CALL(fd, REAL(write)(fd, data, size), REAL(write)(fd, data, size / 2));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    WRITE_CALL(fd, REAL(pwrite)(fd, data, size, offset), REAL(pwrite)(fd, data, size / 2, offset));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    WRITE_CALL(fd, REAL(pwrite64)(fd, data, size, offset), REAL(pwrite64)(fd, data, size / 2, offset));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    WRITE_CALL(fd, REAL(writev)(fd, parts, count), REAL(writev)(fd, parts, 1));
}
int fsync(int fd) { PATH_CALL('f', fd_below(fd), REAL(fsync)(fd)); }
int fdatasync(int fd) { PATH_CALL('f', fd_below(fd), REAL(fdatasync)(fd)); }
int ftruncate(int fd, off_t size) { PATH_CALL('t', fd_below(fd), REAL(ftruncate)(fd, size)); }
int ftruncate64(int fd, off64_t size) { PATH_CALL('t', fd_below(fd), REAL(ftruncate64)(fd, size)); }
int rename(const char *from, const char *to) { PATH_CALL('r', below(to), REAL(rename)(from, to)); }
int renameat(int a, const char *from, int b, const char *to) { PATH_CALL('r', at_below(b, to), REAL(renameat)(a, from, b, to)); }
int unlink(const char *path) { PATH_CALL('u', below(path), REAL(unlink)(path)); }
int unlinkat(int folder, const char *path, int flags) { PATH_CALL('u', at_below(folder, path), REAL(unlinkat)(folder, path, flags)); }
int rmdir(const char *path) { PATH_CALL('u', below(path), REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t bits) { PATH_CALL('m', below(path), REAL(mkdir)(path, bits)); }

#define OPEN_CALL(name) \
int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t bits = va_arg(more, mode_t); va_end(more); \
    PATH_CALL('o', (flags & O_CREAT) && below(path), REAL(name)(path, flags, bits)); \
}
OPEN_CALL(open)
OPEN_CALL(open64)
