// Whether payloads of one size class are copied with cached or with streaming stores: whichever have
// been better of late, by the producer's ticks a byte. Private to the producer, one per size class.
//
// Cached stores into a window that stays in cache cost half of streaming ones where the reader's core
// shares that cache, and up to ten times as much where it does not; cores of a virtual machine move
// between the two within seconds. So nothing is calibrated once. While streaming, the producer looks now
// and then how far its readers are (`due`, `answer`), and if they are near, cached stores are tried over the
// window twice: the first pass brings it into cache, the second counts. A trial that is clearly dearer
// ends at once, and the next one is further away. While cached, streaming stores are sampled
// again every so many bytes; a packet that finds no place in the window (readers that lag) is streamed in
// any case, and is such a sample. A reader gains by what is in cache, too: equal cost is enough.
#pragma once

#include "layout.hpp"

namespace spmc {

class StoreChoice {
 public:
  explicit StoreChoice(u64 window) : lap_(window < kLeastLap ? kLeastLap : window) {}

  // The stores that the next packet should have.
  bool cached() const {
    if (state_ == State::cached) return samples_ == 0;
    return state_ == State::warming || state_ == State::measuring;
  }

  // Whether it is time to look how far the readers are; then the answer.
  bool due() const { return state_ == State::due; }
  void answer(bool near) {
    if (!near) return stream(kShortest);
    state_ = State::warming;
    left_ = lap_;
  }

  // What a copy of `bytes` cost.
  void copied(bool cached, u64 bytes, u64 ticks) {
    const double cost = static_cast<double>(ticks) / static_cast<double>(bytes);
    if (!cached) took_streaming(bytes, cost);
    else if (state_ == State::cached) took_cached(bytes, cost);
    else if (this->cached()) tried(bytes, cost);
  }

  // How long, in ticks, the window is worth waiting for: no longer than a copy elsewhere costs more. Not
  // again at once where that was in vain.
  u64 worth_waiting(u64 bytes) {
    if (in_vain_ != 0 && ++skipped_ < in_vain_) return 0;
    skipped_ = 0;
    const double warm = state_ == State::cached ? cached_ : streaming_ / 2;
    return warm < streaming_ ? static_cast<u64>((streaming_ - warm) * static_cast<double>(bytes)) : 0;
  }
  void waited(bool found) {
    if (found) in_vain_ = 0;
    else if (in_vain_ == 0) in_vain_ = 1;
    else if (in_vain_ < kMostInVain) in_vain_ *= 2;
  }

 private:
  enum class State { streaming, due, warming, measuring, cached };
  static constexpr u64 kLeastLap = 256 << 10;
  static constexpr u64 kFirst = 8 << 20, kShortest = 32 << 20, kLongest = 1 << 30;  // bytes to a trial
  static constexpr u64 kRefresh = 256 << 20;  // cached bytes between samples of streaming
  static constexpr unsigned kSamples = 4;    // packets
  static constexpr unsigned kMostInVain = 256;  // packets between waits
  static constexpr double kEnter = 1.1, kLeave = 1.3;  // cached stores, times the cost of streaming ones
  static constexpr double kHopeless = 3;     // times the cost of streaming: the end of a trial
  static constexpr double kOutlier = 4;      // a packet counts for at most so many times the mean

  static void mix(double& mean, double cost) {
    if (mean == 0) mean = cost;
    const double most = mean * kOutlier;  // the process was not running all the time
    mean += ((cost < most ? cost : most) - mean) / 8;
  }
  // Count `bytes` off; whether none are left.
  static bool is_over(u64& left, u64 bytes) {
    left = left > bytes ? left - bytes : 0;
    return left == 0;
  }

  void took_streaming(u64 bytes, double cost) {
    mix(streaming_, cost);
    if (state_ == State::cached) {
      if (samples_ != 0) --samples_;
      if (cached_ > kLeave * streaming_) stream(kShortest);
    } else if (state_ == State::streaming && is_over(left_, bytes)) {
      state_ = State::due;
    }
  }

  void took_cached(u64 bytes, double cost) {
    mix(cached_, cost);
    if (cached_ > kLeave * streaming_) return stream(kShortest);
    if (!is_over(left_, bytes)) return;
    samples_ = kSamples;
    left_ = kRefresh;
  }

  void tried(u64 bytes, double cost) {
    if (cost > kHopeless * streaming_) return give_up();
    if (state_ == State::measuring) mix(cached_, cost);
    if (!is_over(left_, bytes)) return;
    if (state_ == State::warming) {
      state_ = State::measuring;
      left_ = lap_;
      cached_ = 0;
    } else if (cached_ < kEnter * streaming_) {
      state_ = State::cached;
      left_ = kRefresh;
      samples_ = 0;
      wait_ = kShortest;
    } else {
      give_up();
    }
  }

  void give_up() {
    stream(wait_);
    if (wait_ < kLongest) wait_ *= 2;
  }
  void stream(u64 bytes) {
    state_ = State::streaming;
    left_ = bytes;
  }

  u64 lap_;
  State state_ = State::streaming;
  double streaming_ = 0, cached_ = 0;    // ticks a byte, means over about eight packets
  u64 left_ = kFirst, wait_ = kShortest;  // bytes: to the end of this state; of the next streaming
  unsigned samples_ = 0, in_vain_ = 0, skipped_ = 0;
};

}  // namespace spmc
