/* Lets one call of a process fail that changes the disk below a folder: preloaded, it stands between all code and the system.

   cc -shared -fPIC -O1 -o failing.so failing.c -ldl
   LD_PRELOAD=failing.so; then failing_arm("/runs/", call, error) from within, and failing_count() for how many there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *watched = NULL;
static long count = 0, fatal = 0, last = 0;
static int with = 0;

/* From call `call` on, `calls` of them fail; a full disk stays full. */
void failing_arm(const char *folder, long call, long calls, int error) {
    watched = folder, count = 0, fatal = call, last = call + calls, with = error;
}
long failing_count(void) { return count; }

static int fails(const char *path) {
    if (!watched || !path || !strstr(path, watched)) return 0;
    long now = __sync_add_and_fetch(&count, 1);
    if (fatal && now >= fatal && now < last) { errno = with; return 1; }
    return 0;
}

static int fails_at(int handle) {
    char link[64], path[4096];
    if (!watched || handle < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    int saved = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(path);
}

static int fails_below(int folder, const char *path) {
    char joined[4096];
    if (!watched || !path) return 0;
    if (path[0] == '/') return fails(path);
    if (folder == AT_FDCWD) { if (!getcwd(joined, sizeof joined)) return 0; }
    else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, joined, sizeof joined - 1);
        if (length < 0) return 0;
        joined[length] = 0;
    }
    strncat(joined, "/", sizeof joined - strlen(joined) - 1);
    strncat(joined, path, sizeof joined - strlen(joined) - 1);
    return fails(joined);
}

#define REAL(result, name, ...) static result (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

ssize_t write(int handle, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return fails_at(handle) ? -1 : real(handle, data, size);
}
ssize_t writev(int handle, const struct iovec *parts, int number) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return fails_at(handle) ? -1 : real(handle, parts, number);
}
ssize_t pwrite64(int handle, const void *data, size_t size, off64_t place) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    return fails_at(handle) ? -1 : real(handle, data, size, place);
}
int fsync(int handle) {
    REAL(int, "fsync", int);
    return fails_at(handle) ? -1 : real(handle);
}
int ftruncate64(int handle, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    return fails_at(handle) ? -1 : real(handle, size);
}
int truncate64(const char *path, off64_t size) {
    REAL(int, "truncate64", const char *, off64_t);
    return fails_below(AT_FDCWD, path) ? -1 : real(path, size);
}
int truncate(const char *path, off_t size) {
    REAL(int, "truncate", const char *, off_t);
    return fails_below(AT_FDCWD, path) ? -1 : real(path, size);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return fails_below(AT_FDCWD, path) ? -1 : real(path, mode);
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return fails_below(AT_FDCWD, to) ? -1 : real(from, to);
}
int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return (flags & (O_WRONLY | O_RDWR)) && fails_below(AT_FDCWD, path) ? -1 : real(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    REAL(int, "open", const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return (flags & (O_WRONLY | O_RDWR)) && fails_below(AT_FDCWD, path) ? -1 : real(path, flags, mode);
}
