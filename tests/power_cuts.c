/* Writes down what a program does to the files below a folder; see power_cuts.py.

   Loaded with LD_PRELOAD. Each call is made and logged under one lock, so the log has the order in
   which the calls took effect. A line is "operation, path, other path, offset, bytes", with tabs
   between, and is followed by that many bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static void write_all(int fd, const char *data, size_t size) {
  while (size > 0) {
    ssize_t done = REAL(write)(fd, data, size);
    if (done < 0) abort();
    data += done;
    size -= done;
  }
}

static int below(const char *path) {
  const char *root = getenv("POWER_ROOT");
  size_t length = strlen(root);
  return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static void note(const char *what, const char *path, const char *other, long offset,
                 const void *data, size_t size) {
  static int log = -1;
  char line[2 * PATH_MAX + 100];
  if (log < 0) {
    log = REAL(open)(getenv("POWER_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (log < 0) abort();
  }
  int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\t%zu\n", what, path, other, offset, size);
  write_all(log, line, length);
  write_all(log, data, size);
}

static int path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return length > 0 && below(path);
}

static int path_at(int folder, const char *name, char *path) {
  if (name[0] == '/') {
    snprintf(path, PATH_MAX, "%s", name);
  } else {
    char base[PATH_MAX];
    if (folder == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return 0;
    } else {
      path_of(folder, base);
    }
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) return 0;
  }
  return below(path);
}

static int opened(int folder, const char *name, int flags, mode_t mode) {
  char path[PATH_MAX];
  struct stat info;
  if (!(flags & (O_CREAT | O_TRUNC)) || !path_at(folder, name, path))
    return REAL(openat)(folder, name, flags, mode);
  pthread_mutex_lock(&lock);
  int known = stat(path, &info) == 0;
  int fd = REAL(openat)(folder, name, flags, mode), error = errno;
  if (fd >= 0 && !known) note("create", path, "", 0, "", 0);
  if (fd >= 0 && known && (flags & O_TRUNC)) note("truncate", path, "", 0, "", 0);
  pthread_mutex_unlock(&lock);
  errno = error;
  return fd;
}

#define MODE                         \
  mode_t mode = 0;                   \
  if (flags & O_CREAT) {             \
    va_list more;                    \
    va_start(more, flags);           \
    mode = va_arg(more, mode_t);     \
    va_end(more);                    \
  }

int open(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) {
  MODE return opened(folder, name, flags, mode);
}
int openat64(int folder, const char *name, int flags, ...) {
  MODE return opened(folder, name, flags, mode);
}
int creat(const char *name, mode_t mode) {
  return opened(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

/* The call, which may use `path`, and under the same lock its entry in the log. */
#define LOGGED(type, call, succeeded, ...) \
  pthread_mutex_lock(&lock);               \
  type result = call;                      \
  int error = errno;                       \
  if (succeeded) note(__VA_ARGS__);        \
  pthread_mutex_unlock(&lock);             \
  errno = error;                           \
  return result;

static long position(int fd) {
  struct stat info;
  if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &info) == 0 ? info.st_size : 0;
  return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t size) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return REAL(write)(fd, data, size);
  pthread_mutex_lock(&lock);
  long offset = position(fd);
  ssize_t result = REAL(write)(fd, data, size);
  int error = errno;
  if (result > 0) note("write", path, "", offset, data, result);
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return REAL(pwrite64)(fd, data, size, offset);
  LOGGED(ssize_t, REAL(pwrite64)(fd, data, size, offset), result > 0, "write", path, "", offset,
         data, result)
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  return pwrite64(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return REAL(writev)(fd, parts, count);
  pthread_mutex_lock(&lock);
  ssize_t total = 0;
  for (int i = 0; i < count; i++) {
    ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
    if (done < 0) {
      total = total ? total : done;
      break;
    }
    total += done;
    if ((size_t)done < parts[i].iov_len) break;
  }
  pthread_mutex_unlock(&lock);
  return total;
}

int ftruncate64(int fd, off64_t size) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return REAL(ftruncate64)(fd, size);
  LOGGED(int, REAL(ftruncate64)(fd, size), !result, "truncate", path, "", size, "", 0)
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fsync(int fd) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return REAL(fsync)(fd);
  LOGGED(int, REAL(fsync)(fd), !result, "sync", path, "", 0, "", 0)
}
int fdatasync(int fd) { return fsync(fd); }

int renameat(int from, const char *source, int to, const char *target) {
  char path[PATH_MAX], other[PATH_MAX];
  int logged = path_at(from, source, path) | path_at(to, target, other);
  if (!logged) return REAL(renameat)(from, source, to, target);
  LOGGED(int, REAL(renameat)(from, source, to, target), !result, "rename", path, other, 0, "", 0)
}
int rename(const char *source, const char *target) {
  return renameat(AT_FDCWD, source, AT_FDCWD, target);
}

int mkdirat(int folder, const char *name, mode_t mode) {
  char path[PATH_MAX];
  if (!path_at(folder, name, path)) return REAL(mkdirat)(folder, name, mode);
  LOGGED(int, REAL(mkdirat)(folder, name, mode), !result, "mkdir", path, "", 0, "", 0)
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int unlinkat(int folder, const char *name, int flags) {
  char path[PATH_MAX];
  if (!path_at(folder, name, path)) return REAL(unlinkat)(folder, name, flags);
  LOGGED(int, REAL(unlinkat)(folder, name, flags), !result, "unlink", path, "", 0, "", 0)
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
