#include "segment.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace spmc {
namespace {

constexpr const char* kDirectory = "/dev/shm";
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

struct Fd {
  int value = -1;
  ~Fd() {
    if (value >= 0) close(value);
  }
  int release() {
    const int fd = value;
    value = -1;
    return fd;
  }
};

std::string mib(u64 bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

[[noreturn]] void fail(const std::string& what, int error, const std::string& fix) {
  throw Error(what + ": " + std::strerror(error) + "; " + fix);
}

// memfd pages are not limited by any mount: asking for more than there is would wake the OOM killer.
u64 available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  u64 kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib << 10;
    file.ignore(256, '\n');
  }
  return ~0ULL;
}

std::string path_of(const std::string& name) {
  if (name.empty() || name.size() > 100 || name.find('/') != std::string::npos || name[0] == '.')
    throw Error("bus name " + name + " must be 1..100 characters without '/' or a leading '.'");
  return std::string(kDirectory) + "/asys-" + name;
}

void reserve(int fd, u64 bytes, const std::string& where) {
  // posix_fallocate, not ftruncate: a sparse file dies of SIGBUS at the first touch that finds no page
  int error = 0;
  do error = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  while (error == EINTR);
  if (error != 0)
    fail("cannot reserve " + mib(bytes) + " of shared memory in " + where, error,
         "lower bus.capacity_bytes, capacity_packets or shards, or enlarge it "
         "(docker: --shm-size; mount -o remount,size=... /dev/shm)");
}

}  // namespace

std::shared_ptr<Segment> Segment::create(const SegmentRequest& request) {
  if (const char* why =
          geometry_error(request.shards, request.slots, request.arena_bytes, request.max_payload))
    throw Error(std::string("cannot lay out the bus: ") + why);
  std::shared_ptr<Segment> segment(new Segment());
  Segment& s = *segment;
  s.geometry_ = spmc::geometry(request.shards, request.slots, request.arena_bytes, request.max_payload);
  s.owner_ = true;
  const u64 bytes = s.geometry_.segment_bytes;
  const u64 available = available_bytes();
  if (bytes > available)
    throw Error("the bus needs " + mib(bytes) + " but " + mib(available) +
                " of memory are available; lower bus.capacity_bytes, capacity_packets or shards");

  const bool named = !request.name.empty();
  const std::string path = named ? path_of(request.name) : "";
  const char* where = named ? kDirectory : "memory";
  s.fd_ = Descriptor(named ? open(kDirectory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)
                           : memfd_create("asys-cpp-spmc", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  const int fd = s.fd_.get();
  if (fd < 0)
    fail(std::string("cannot create a shared segment in ") + where, errno,
         errno == EMFILE || errno == ENFILE ? "raise the open-file limit (ulimit -n)"
                                            : "is /dev/shm mounted and writable?");
  // A memfd starts as 0777, and /proc/<pid>/fd opens it by its mode.
  if (!named && fchmod(fd, 0600) != 0) fail("cannot make the segment private", errno, "report this kernel");
  reserve(fd, bytes, where);
  s.map(true);
  s.initialise(request);
  if (!named) {
    if (fcntl(fd, F_ADD_SEALS, kSeals) != 0)
      fail("cannot seal the segment", errno, "this kernel lacks memfd seals: use a bus name");
    return segment;
  }

  // Everybody who lives holds a shared lock, so an exclusive one means that the file is a leftover.
  if (flock(fd, LOCK_SH) != 0) fail("cannot lock " + path, errno, "is /dev/shm a tmpfs?");
  const std::string self = "/proc/self/fd/" + std::to_string(fd);
  for (int attempt = 0; attempt < 3; ++attempt) {
    if (linkat(AT_FDCWD, self.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0) {
      s.name_ = request.name;
      return segment;
    }
    if (errno != EEXIST) fail("cannot publish " + path, errno, "choose another bus name");
    Fd old{open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW)};
    if (old.value < 0 || flock(old.value, LOCK_EX | LOCK_NB) != 0) break;
    ::unlink(path.c_str());
  }
  throw Error("a bus named " + request.name + " exists and is in use (" + path +
              "); choose another name or stop its processes");
}

std::shared_ptr<Segment> Segment::attach_fd(int given) {
  std::shared_ptr<Segment> segment(new Segment());
  segment->fd_ = Descriptor(fcntl(given, F_DUPFD_CLOEXEC, 3));
  const int fd = segment->fd_.get();
  if (fd < 0)
    fail("file descriptor " + std::to_string(given) + " cannot be attached", errno,
         "pass the handle's descriptors to this process (pass_fds) and use their numbers here");
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
    throw Error("file descriptor " + std::to_string(given) + " is not a bus segment");
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals)
    throw Error("the segment is not sealed: whoever shrinks it would kill this process by SIGBUS");
  segment->validate(static_cast<u64>(status.st_size));
  return segment;
}

std::shared_ptr<Segment> Segment::attach_name(const std::string& name) {
  const std::string path = path_of(name);
  std::shared_ptr<Segment> segment(new Segment());
  segment->fd_ = Descriptor(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  const int fd = segment->fd_.get();
  if (fd < 0) fail("cannot open bus " + name + " at " + path, errno, "is its host running?");
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
      status.st_uid != geteuid() || (status.st_mode & 0777) != 0600)
    throw Error(path + " is not a private file of this user (0600): refusing to attach");
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
    ::unlink(path.c_str());
    throw Error("bus " + name + " was left behind by dead processes; it is removed now");
  }
  if (flock(fd, LOCK_SH | LOCK_NB) != 0)
    throw Error("bus " + name + " is being removed; start it again");
  segment->validate(static_cast<u64>(status.st_size));
  segment->name_ = name;
  return segment;
}

void Segment::validate(u64 file_bytes) {
  u64 header[kPage / 8];
  if (file_bytes < kShardsOffset ||
      pread(fd_.get(), header, sizeof header, 0) != static_cast<ssize_t>(sizeof header))
    throw Error("the segment has " + std::to_string(file_bytes) + " bytes: too few for a bus");
  const auto field = [&header](u64 offset) { return header[offset / 8]; };
  if (field(kHdrMagic) != kMagic) throw Error("the segment is not a cpp_spmc bus (wrong magic)");
  if (field(kHdrVersion) != kLayoutVersion)
    throw Error("the segment has layout version " + std::to_string(field(kHdrVersion)) +
                ", this build reads " + std::to_string(kLayoutVersion) + "; use one version");
  const u64 shards = field(kHdrShards), slots = field(kHdrSlots), arena = field(kHdrArenaBytes);
  if (const char* why = geometry_error(shards, slots, arena, field(kHdrMaxPayload)))
    throw Error(std::string("the segment's header is damaged: ") + why);
  geometry_ = spmc::geometry(shards, slots, arena, field(kHdrMaxPayload));
  if (geometry_.segment_bytes != file_bytes || field(kHdrSegmentBytes) != file_bytes ||
      field(kHdrShardsOffset) != kShardsOffset || field(kHdrShardStride) != geometry_.shard_stride ||
      field(kHdrArenaOffset) != geometry_.arena_offset)
    throw Error("the segment's header is damaged: offsets or size do not add up");
  if (field(kHdrState) < kLive || field(kHdrState) > kClosing)
    throw Error("the segment's header is damaged: unknown state");
  // From here on only these private copies are used: the header may change under us.
  source_ = field(kHdrSource);
  initial_seq_ = field(kHdrInitialSeq);
  checksum_ = (field(kHdrFlags) & 1) != 0;
  identity_ = own_identity();
  owner_watch_ = std::make_unique<ProcessWatch>(field(kHdrOwnerIdentity));
  map(false);
}

void Segment::map(bool writable_arena) {
  const u64 bytes = geometry_.segment_bytes;
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (base == MAP_FAILED)
    fail("cannot map " + mib(bytes), errno, "raise the address-space limit (ulimit -v)");
  base_ = static_cast<u8*>(base);
  u8* arena = base_ + geometry_.arena_offset;
  const u64 arena_bytes = bytes - geometry_.arena_offset;
  // Readers cannot write a payload, not even by mistake: the hardware says no.
  if (!writable_arena && mprotect(arena, arena_bytes, PROT_READ) != 0)
    fail("cannot protect the arena", errno, "report this kernel");
  // The pages exist; this fills the page tables, so that no first touch faults on the hot path.
  madvise(base_, geometry_.arena_offset, MADV_POPULATE_WRITE);
  madvise(arena, arena_bytes, writable_arena ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
}

void Segment::initialise(const SegmentRequest& request) {
  source_ = request.source;
  initial_seq_ = request.initial_seq;
  checksum_ = request.checksum;
  identity_ = own_identity();
  owner_watch_ = std::make_unique<ProcessWatch>(identity_);
  word(kHdrVersion) = kLayoutVersion;
  word(kHdrSegmentBytes) = geometry_.segment_bytes;
  word(kHdrShards) = geometry_.shards;
  word(kHdrSlots) = geometry_.slots;
  word(kHdrArenaBytes) = geometry_.arena_bytes;
  word(kHdrShardsOffset) = kShardsOffset;
  word(kHdrShardStride) = geometry_.shard_stride;
  word(kHdrArenaOffset) = geometry_.arena_offset;
  word(kHdrMaxPayload) = geometry_.max_payload;
  word(kHdrSource) = source_;
  word(kHdrFlags) = checksum_ ? 1 : 0;
  word(kHdrOwnerIdentity) = identity_;
  word(kHdrInitialSeq) = initial_seq_;
  for (u64 i = 0; i < geometry_.shards; ++i) {
    const ShardMemory m = shard(i);
    store(m.wseq(), initial_seq_);
    for (unsigned g = 0; g < kGroups; ++g) store(m.hint(g), initial_seq_ & kSeqMask);
    for (unsigned r = 0; r < 2; ++r) {
      store(m.at(kShPublished + r * kShPublishedStride), initial_seq_);
      store(m.at(kShHarvest + r * kShHarvestStride), initial_seq_);
    }
  }
  store(word(kHdrState), kLive);
  store(word(kHdrMagic), kMagic, Order::release);
}

void Segment::refuse() { store(word(kHdrState), kClosing, Order::seq_cst); }

void Segment::finish() {
  store(word(kHdrState), kFinished, Order::seq_cst);
  ring();
}

void Segment::ring() const {
  ShardMemory m = shard(0);
  ShardRing::ring(m);
}

void Segment::take_shard(u64 index) {
  if (index >= geometry_.shards)
    throw Error("no shard " + std::to_string(index) + "; this bus has shards 0.." +
                std::to_string(geometry_.shards - 1));
  u64& producer = shard(index).at(kShProducer);
  u64 found = 0;
  if (!cas(producer, found, identity_))
    throw Error("the producer of shard " + std::to_string(index) +
                " was already handed out (to process " + std::to_string(identity_pid(found)) +
                "); one writes a shard, for as long as the bus lives");
  if (owner_) return;
  u8* const begin = arena(index);
  if (mprotect(begin, geometry_.arena_bytes, PROT_READ | PROT_WRITE) != 0) {
    const int why = errno;
    store(producer, 0);
    fail("cannot open the arena of shard " + std::to_string(index) + " for writing", why,
         "report this kernel");
  }
  madvise(begin, geometry_.arena_bytes, MADV_POPULATE_WRITE);
}

void Segment::unlink() {
  if (name_.empty()) return;
  const std::string path = path_of(name_);
  struct stat ours {}, theirs {};
  if (fstat(fd_.get(), &ours) == 0 && stat(path.c_str(), &theirs) == 0 && ours.st_ino == theirs.st_ino)
    ::unlink(path.c_str());
  name_.clear();
}

Segment::~Segment() {
  if (owner_ && identity_pid(identity_) == static_cast<u64>(getpid())) unlink();
  if (base_ != nullptr) munmap(base_, geometry_.segment_bytes);
}

}  // namespace spmc
