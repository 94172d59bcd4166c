/* Preloaded, this library fails a chosen call of the system on what lies in one folder, with a chosen errno.

   SQLite, FAISS, NumPy and Python all make these calls by libc, so each of them meets the error where it is real. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4, STAT = 8, DESCRIPTORS = 65536 };

static char folder[4096];
static unsigned char tracked[DESCRIPTORS];
static atomic_int armed, kinds, code, lasting;
static atomic_long left, seen;

void watch(const char *path) { snprintf(folder, sizeof folder, "%s", path); }

/* The calls of these kinds are counted; number `at`, and those after it where it lasts, fail with `with`. */
void arm(int of, long at, int with, int lasts) {
    kinds = of;
    left = at;
    code = with;
    lasting = lasts;
    seen = 0;
    armed = 1;
}

/* How many more would have been let through. */
long remaining(void) { return left; }

/* Whether any failed. */
long disarm(void) { armed = 0; return seen; }

static int fails(int kind) {
    if (!armed || !(kinds & kind)) return 0;
    long number = atomic_fetch_sub(&left, 1);
    if (number > 0 || (number < 0 && !lasting)) return 0;
    seen++;
    errno = code;
    return 1;
}

static int inside(const char *path) {
    if (!folder[0] || !path) return 0;
    if (!strncmp(path, "/proc/self/fd/", 14)) {
        int fd = atoi(path + 14);
        return fd >= 0 && fd < DESCRIPTORS && tracked[fd];
    }
    return !strncmp(path, folder, strlen(folder));
}

static int ours(int fd) { return fd >= 0 && fd < DESCRIPTORS && tracked[fd]; }
static void note(int fd, int mine) { if (fd >= 0 && fd < DESCRIPTORS) tracked[fd] = (unsigned char)mine; }

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        static int (*real)(const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (inside(path) && fails(OPEN)) return -1; \
        int mine = inside(path), fd = real(path, flags, mode); note(fd, mine); return fd; }
OPENS(open) OPENS(open64)

#define OPENATS(name) \
    int name(int at, const char *path, int flags, ...) { \
        static int (*real)(int, const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (inside(path) && fails(OPEN)) return -1; \
        int mine = inside(path), fd = real(at, path, flags, mode); note(fd, mine); return fd; }
OPENATS(openat) OPENATS(openat64)

#define FOPENS(name) \
    FILE *name(const char *path, const char *mode) { \
        static FILE *(*real)(const char *, const char *); if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (inside(path) && fails(OPEN)) return NULL; \
        FILE *file = real(path, mode); if (file) note(fileno(file), inside(path)); return file; }
FOPENS(fopen) FOPENS(fopen64)

int close(int fd) { REAL(close); note(fd, 0); return real(fd); }

#define BY_DESCRIPTOR(kind, result, name, declared, ...) \
    result name declared { static result (*real) declared; if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (ours(fd) && fails(kind)) return -1; return real(__VA_ARGS__); }
BY_DESCRIPTOR(READ, ssize_t, read, (int fd, void *to, size_t n), fd, to, n)
BY_DESCRIPTOR(READ, ssize_t, pread, (int fd, void *to, size_t n, off_t at), fd, to, n, at)
BY_DESCRIPTOR(READ, ssize_t, pread64, (int fd, void *to, size_t n, off64_t at), fd, to, n, at)
BY_DESCRIPTOR(WRITE, ssize_t, write, (int fd, const void *of, size_t n), fd, of, n)
BY_DESCRIPTOR(WRITE, ssize_t, pwrite, (int fd, const void *of, size_t n, off_t at), fd, of, n, at)
BY_DESCRIPTOR(WRITE, ssize_t, pwrite64, (int fd, const void *of, size_t n, off64_t at), fd, of, n, at)
BY_DESCRIPTOR(WRITE, int, fsync, (int fd), fd)
BY_DESCRIPTOR(WRITE, int, fdatasync, (int fd), fd)
BY_DESCRIPTOR(WRITE, int, ftruncate, (int fd, off_t size), fd, size)
BY_DESCRIPTOR(WRITE, int, ftruncate64, (int fd, off64_t size), fd, size)
BY_DESCRIPTOR(STAT, int, fstat, (int fd, struct stat *to), fd, to)
BY_DESCRIPTOR(STAT, int, fstat64, (int fd, struct stat64 *to), fd, to)

#define FALLOCATES(name, offset) \
    int name(int fd, offset at, offset size) { \
        static int (*real)(int, offset, offset); if (!real) real = dlsym(RTLD_NEXT, #name); \
        return ours(fd) && fails(WRITE) ? (int)code : real(fd, at, size); }
FALLOCATES(posix_fallocate, off_t) FALLOCATES(posix_fallocate64, off64_t)

#define MAPS(name, offset) \
    void *name(void *at, size_t n, int protection, int flags, int fd, offset from) { \
        static void *(*real)(void *, size_t, int, int, int, offset); if (!real) real = dlsym(RTLD_NEXT, #name); \
        return ours(fd) && fails(READ) ? MAP_FAILED : real(at, n, protection, flags, fd, from); }
MAPS(mmap, off_t) MAPS(mmap64, off64_t)

#define BY_PATH(kind, name, declared, ...) \
    int name declared { static int (*real) declared; if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (inside(path) && fails(kind)) return -1; return real(__VA_ARGS__); }
BY_PATH(STAT, stat, (const char *path, struct stat *to), path, to)
BY_PATH(STAT, stat64, (const char *path, struct stat64 *to), path, to)
BY_PATH(STAT, lstat, (const char *path, struct stat *to), path, to)
BY_PATH(STAT, lstat64, (const char *path, struct stat64 *to), path, to)
BY_PATH(STAT, fstatat, (int at, const char *path, struct stat *to, int flags), at, path, to, flags)
BY_PATH(STAT, fstatat64, (int at, const char *path, struct stat64 *to, int flags), at, path, to, flags)
BY_PATH(STAT, access, (const char *path, int mode), path, mode)
BY_PATH(WRITE, mkdir, (const char *path, mode_t mode), path, mode)
BY_PATH(WRITE, rename, (const char *path, const char *to), path, to)
BY_PATH(WRITE, link, (const char *path, const char *to), path, to)
BY_PATH(WRITE, linkat, (int a, const char *path, int b, const char *to, int flags), a, path, b, to, flags)
BY_PATH(WRITE, unlink, (const char *path), path)
BY_PATH(WRITE, rmdir, (const char *path), path)
BY_PATH(WRITE, truncate, (const char *path, off_t size), path, size)
