// The mapped segment: made by the owner, attached by others, who trust nothing that they read in it.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "atomics.hpp"
#include "descriptor.hpp"
#include "layout.hpp"
#include "liveness.hpp"

namespace spmc {

// Becomes BusError in Python: says why and the fix.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct SegmentRequest {
  u64 shards = 1, slots = 4096, arena_bytes = 0, max_payload = 0;
  u64 source = 0, initial_seq = 0;
  bool checksum = false;
  std::string name;  // empty: anonymous (memfd), passed on by file descriptor
};

class Segment {
 public:
  static std::shared_ptr<Segment> create(const SegmentRequest& request);
  static std::shared_ptr<Segment> attach_fd(int fd);
  static std::shared_ptr<Segment> attach_name(const std::string& name);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  const Geometry& geometry() const { return geometry_; }
  u64 source() const { return source_; }
  u64 initial_seq() const { return initial_seq_; }
  bool checksum() const { return checksum_; }
  bool owner() const { return owner_; }
  // -1 when this process has closed it; the memory stays mapped.
  int fd() const { return fd_.get(); }
  const std::string& name() const { return name_; }
  u64 identity() const { return identity_; }

  u64& word(u64 offset) const { return *reinterpret_cast<u64*>(base_ + offset); }
  u8* bytes(u64 offset) const { return base_ + offset; }
  u8* arena(u64 shard) const { return base_ + geometry_.arena_offset + shard * geometry_.arena_bytes; }
  ShardMemory shard(u64 index) const { return ShardMemory(base_, geometry_, index); }

  bool finished() const { return load(word(kHdrState), Order::seq_cst) == kFinished; }
  // The owner process died, or said that it is done: wseq will not move again.
  bool no_more() { return finished() || owner_watch_->dead(); }
  // Pushes are refused from now on, but one that began may still publish.
  bool refusing() const { return load(word(kHdrState), Order::acquire) != kLive; }
  void refuse();
  // Nothing will be published any more.
  void finish();
  void ring() const;
  // From now on this process is the one that writes `shard`, whose arena it may write. A shard is
  // taken once: after its writer's death nobody knows which frames of the arena are live.
  void take_shard(u64 shard);
  // Unlink a named segment; the memory lives until the last process lets go.
  void unlink();

 private:
  Segment() = default;
  void map(bool writable_arena);
  void validate(u64 file_bytes);
  void initialise(const SegmentRequest& request);

  u8* base_ = nullptr;
  Geometry geometry_{};
  u64 source_ = 0, initial_seq_ = 0, identity_ = 0;
  bool checksum_ = false, owner_ = false;
  Descriptor fd_;
  std::string name_;
  std::unique_ptr<ProcessWatch> owner_watch_;
};

}  // namespace spmc
