// Where the next frame goes in a shard's arena. Private to the producer; rebuilt by nobody, because
// a shard has one producer for its life.
//
// Frames are freed in the order of their sequence numbers, so this is a ring, with one change: once
// the head has passed `window` and the readers are done with the start, it wraps early. While the
// readers keep up, only the first `window` bytes are ever touched and stay in cache; when they fall
// behind, the whole arena is used. Streaming stores want the opposite (`hot` = false): they pass by
// the cache, and would only find lines that a reader's cache still holds.
#pragma once

#include <optional>

#include "layout.hpp"

namespace spmc {

class Arena {
 public:
  Arena(u64 bytes, u64 window) : bytes_(bytes), window_(window < bytes ? window : bytes) {}

  // Byte offset of `need` free bytes (a multiple of 64), or nothing. `hot`: wrap early if possible.
  std::optional<u64> allocate(u64 need, bool hot) {
    if (wrapped_) {
      if (head_ + need > tail_) return std::nullopt;
    } else if (need <= tail_ && head_ + need > (hot ? window_ : bytes_)) {
      wrapped_ = true;
      head_ = 0;
    } else if (head_ + need > bytes_) {
      return std::nullopt;
    }
    const u64 offset = head_;
    head_ += need;
    return offset;
  }

  // An early wrap could be possible if only we knew what the readers have finished.
  bool wants_reclaim(u64 need, bool hot) const {
    return hot && !wrapped_ && head_ + need > window_;
  }

  void undo(u64 offset) { head_ = offset; }  // of the last allocation, still unpublished

  // The oldest live frame starts here now.
  void free_to(u64 start) {
    if (wrapped_ && start < tail_) wrapped_ = false;
    tail_ = start;
  }

  void clear() {
    head_ = tail_ = 0;
    wrapped_ = false;
  }

  u64 used() const { return wrapped_ ? bytes_ - tail_ + head_ : head_ - tail_; }
  u64 bytes() const { return bytes_; }

 private:
  u64 bytes_, window_;
  u64 head_ = 0, tail_ = 0;
  bool wrapped_ = false;
};

}  // namespace spmc
