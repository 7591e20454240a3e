// Is that process dead? The kernel's answer (pidfd), never a timeout and never kill(pid, 0), which a
// zombie answers and a reused pid answers for someone else.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "descriptor.hpp"
#include "layout.hpp"

namespace spmc {

// Who a word of the owner table names: start time (`process_start_time`, low 32 bits) and pid.
// One word, so that registering is one compare-and-swap and a kill leaves no half-written identity.
constexpr u64 make_identity(u64 pid, u64 start_time) {
  return ((start_time & 0xFFFFFFFF) << 32) | ((pid & 0x3FFFFF) << 10);
}
constexpr u64 identity_pid(u64 identity) { return (identity >> 10) & 0x3FFFFF; }
constexpr u64 identity_generation(u64 identity) { return identity & 0x3FF; }
constexpr u64 identity_of(u64 word) { return word & ~0x3FFULL; }

// Field 22 of /proc/<pid>/stat, or 0 when there is no such process. (comm may hold spaces and ')'.)
inline u64 boot_ticks(u64 pid) {
  char path[64], text[1024];
  std::snprintf(path, sizeof path, "/proc/%llu/stat", static_cast<unsigned long long>(pid));
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  if (n <= 0) return 0;
  text[n] = 0;
  const char* at = std::strrchr(text, ')');
  for (int field = 2; at != nullptr && field < 22; ++field) at = std::strchr(at + 1, ' ');
  return at == nullptr ? 0 : std::strtoull(at + 1, nullptr, 10);
}

// As asys_bench/system/process.py: clock ticks since process 1 started, plus 3, or 0 when there is no
// such process. /proc shifts field 22 to the clock of the reader's time namespace, all by the same time,
// and adds 2^64 ns to who started before that clock was 0.
inline u64 process_start_time(u64 pid) {
  constexpr u64 kWrapped = ~0ULL / 10'000'000 + 1;
  const auto unwrapped = [](u64 ticks) { return ticks > kWrapped / 2 ? ticks - kWrapped : ticks; };
  const u64 ticks = boot_ticks(pid);
  return ticks == 0 ? 0 : unwrapped(ticks) - unwrapped(boot_ticks(1)) + 3;
}

// Two namespaces round differently, each of the two times.
constexpr bool is_same_start(u64 a, u64 b) { return ((a - b + 2) & 0xFFFFFFFF) <= 4; }

inline u64 own_identity() {
  const auto pid = static_cast<u64>(getpid());
  return make_identity(pid, process_start_time(pid));
}

// Watches one process through a pidfd, which stays right when the pid is reused. It is opened with the
// first question: only readers ask, so a host that pushes has none that it could close.
class ProcessWatch {
 public:
  explicit ProcessWatch(u64 identity) : identity_(identity) {}
  ProcessWatch(const ProcessWatch&) = delete;
  ProcessWatch& operator=(const ProcessWatch&) = delete;

  bool dead() {
    if (gone_) return true;
    std::call_once(opened_, [this] { open(); });
    const int fd = pidfd_.get();
    if (gone_ || fd < 0) return gone_;
    pollfd poll_fd{fd, POLLIN, 0};  // readable once it has terminated, zombie or not
    if (poll(&poll_fd, 1, 0) == 1 && (poll_fd.revents & POLLIN) != 0 && pidfd_.get() >= 0) gone_ = true;
    return gone_;
  }

 private:
  void open() {
    const u64 pid = identity_pid(identity_);
    pidfd_ = Descriptor(static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0)));
    if (pidfd_.empty()) {
      gone_ = errno == ESRCH;
      return;  // anything else (EMFILE, EPERM): unknown counts as alive
    }
    // The pidfd may already name a later process of the same pid: the start time tells.
    const u64 start = process_start_time(pid);
    gone_ = start != 0 && !is_same_start(start, identity_ >> 32);
  }

  u64 identity_;
  std::once_flag opened_;
  Descriptor pidfd_;
  std::atomic<bool> gone_ = false;  // the threads of a process share the watch of its bus's owner
};

inline bool is_dead(u64 identity) { return ProcessWatch(identity).dead(); }

}  // namespace spmc
