// A file descriptor in a process that is not ours: see asys_bench/system/descriptor.py.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace spmc {

// The host may close any number and reuse it for a file of its own. So ours are high, and a number is
// asked what it means before it is used or closed; one that means something else is left alone.
class Descriptor {
 public:
  Descriptor() = default;
  // Takes over `fd`; -1 holds nothing (errno is kept).
  explicit Descriptor(int fd) {
    if (fd < 0) return;
    const int before = errno;
    fd_ = high(fd);
    struct stat status {};
    if (fstat(fd_, &status) == 0) {
      device_ = status.st_dev;
      inode_ = status.st_ino;
    }
    errno = before;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor(Descriptor&& other) noexcept { *this = static_cast<Descriptor&&>(other); }
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this == &other) return *this;
    close();
    fd_ = other.fd_, device_ = other.device_, inode_ = other.inode_;
    other.fd_ = -1;
    return *this;
  }
  ~Descriptor() { close(); }

  // The number while it is ours, else -1.
  int get() const {
    struct stat status {};
    const bool same = fd_ >= 0 && fstat(fd_, &status) == 0 && status.st_dev == device_ &&
                      status.st_ino == inode_;
    return same ? fd_ : -1;
  }
  void close() {
    if (get() >= 0) ::close(fd_);
    fd_ = -1;
  }
  bool empty() const { return fd_ < 0; }

 private:
  static constexpr int kFirst = 512;

  static int high(int fd) {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return fd;
    const int half = limit.rlim_cur > 1u << 20 ? 1 << 19 : static_cast<int>(limit.rlim_cur / 2);
    for (const int lowest : {kFirst, half}) {
      if (fd >= lowest) return fd;
      const int moved = fcntl(fd, F_DUPFD_CLOEXEC, lowest);
      if (moved < 0) continue;
      ::close(fd);
      return moved;
    }
    return fd;
  }

  int fd_ = -1;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace spmc
