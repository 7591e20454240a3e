// Linked into programs that qemu runs. Its user-mode emulation answers for /proc/<own pid>/stat itself, and
// tells each thread the time at which that thread started: a thread would take its own process for another
// one that got the pid later, and the bus's owner for dead. Below task/ the kernel answers.
#include <cstdarg>
#include <cstdio>
#include <fcntl.h>

extern "C" int __real_open(const char* path, int flags, ...);

extern "C" int __wrap_open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  unsigned long long pid = 0;
  int end = 0;
  char other[80];
  if (std::sscanf(path, "/proc/%llu/stat%n", &pid, &end) == 1 && end > 0 && path[end] == 0) {
    std::snprintf(other, sizeof other, "/proc/%llu/task/%llu/stat", pid, pid);
    path = other;
  }
  return __real_open(path, flags, mode);
}
