// Where the next frame goes in a shard's arena. Private to the producer; rebuilt by nobody, because
// a shard has one producer for its life.
//
// Frames are freed in the order of their sequence numbers. Live frames lie in a few runs of
// contiguous bytes, oldest run first; the newest grows. A run ends where another lies in its way, at
// the end of the arena, or early: once it has passed `window` and the start is free. While the
// readers keep up, only the first `window` bytes are ever touched and stay in cache; when they fall
// behind, a run is begun in whatever gap is left, so the whole arena is used. (A plain ring that
// wrapped early would be full at `window` bytes until its readers had caught up.) Streaming stores
// want no early wrap (`hot` = false): they pass by the cache, and would only find lines that a
// reader's cache still holds.
#pragma once

#include <algorithm>
#include <array>
#include <optional>

#include "layout.hpp"

namespace spmc {

class Arena {
 public:
  Arena(u64 bytes, u64 window)
      : bytes_(bytes), window_(window < bytes ? window : bytes), stale_bytes_(window_ / 8) {}

  u64 window() const { return window_; }

  // Byte offset of `need` free bytes (a multiple of 64), or nothing. `hot`: in the window if possible.
  std::optional<u64> allocate(u64 need, bool hot) {
    std::optional<u64> start = hot ? in_window(need) : std::nullopt;
    return start ? start : anywhere(need);
  }

  // The same within the window only.
  std::optional<u64> in_window(u64 need) {
    if (need > window_) return std::nullopt;
    if (count_ != 0) {
      Run& newest = runs_[count_ - 1];
      if (newest.end + need <= window_ && fits(newest.end, need)) return grow(newest, need);
      if (count_ >= kEarlyRuns || !fits(0, need)) return std::nullopt;
    }
    return begin(0, need);
  }

  // The newest run cannot grow within the window: it could, or another begin there, if only we knew what
  // the readers have finished. Asked anew every so many bytes, as each look at a slot that a reader wrote
  // costs a miss.
  bool wants_reclaim(u64 need) const {
    if (count_ == 0 || since_ < stale_bytes_) return false;
    const u64 end = runs_[count_ - 1].end;
    return end + need > window_ || !fits(end, need);
  }
  void reclaimed() { since_ = 0; }

  // Give back the end of the last allocation, still unpublished, from `offset` on.
  void undo(u64 offset) {
    Run& newest = runs_[count_ - 1];
    since_ -= newest.end - offset;
    newest.end = offset;
    if (newest.end == newest.start) --count_;
  }

  // The oldest live frame starts here now.
  void free_to(u64 start) {
    unsigned gone = 0;
    while (gone < count_ && !(runs_[gone].start <= start && start < runs_[gone].end)) ++gone;
    std::copy(runs_.begin() + gone, runs_.begin() + count_, runs_.begin());
    count_ -= gone;
    if (count_ != 0) runs_[0].start = start;
  }

  void clear() { count_ = 0; }

  u64 used() const {
    u64 total = 0;
    for (unsigned i = 0; i < count_; ++i) total += runs_[i].end - runs_[i].start;
    return total;
  }
  u64 bytes() const { return bytes_; }

 private:
  struct Run {
    u64 start, end;
  };
  static constexpr unsigned kRuns = 16;
  static constexpr unsigned kEarlyRuns = 3;  // the others are for the gaps that early wraps leave

  std::optional<u64> anywhere(u64 need) {
    if (count_ != 0 && fits(runs_[count_ - 1].end, need)) return grow(runs_[count_ - 1], need);
    if (count_ == kRuns) return std::nullopt;
    u64 start = 0;
    for (unsigned i = 0; !fits(start, need); ++i) {
      if (i == count_) return std::nullopt;
      start = runs_[i].end;
    }
    return begin(start, need);
  }

  u64 grow(Run& run, u64 need) {
    run.end += need;
    since_ += need;
    return run.end - need;
  }
  u64 begin(u64 start, u64 need) {
    runs_[count_++] = {start, start + need};
    since_ += need;
    return start;
  }

  bool fits(u64 start, u64 need) const {
    if (start + need > bytes_) return false;
    for (unsigned i = 0; i < count_; ++i)
      if (start < runs_[i].end && runs_[i].start < start + need) return false;
    return true;
  }

  u64 bytes_, window_, stale_bytes_;
  u64 since_ = 0;  // allocated since the last reclaim
  std::array<Run, kRuns> runs_{};  // oldest first
  unsigned count_ = 0;
};

}  // namespace spmc
