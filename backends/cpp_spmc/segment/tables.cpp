#include "tables.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace spmc {
namespace {

// Serialises edits of the group and name tables. Never on a data path. It holds its owner's
// identity, so the lock of a killed editor is broken by the next one; entries become visible only
// when complete, so a half-made one is simply overwritten.
class TableLock {
 public:
  enum class Wait { yes, no };
  explicit TableLock(Segment& s, Wait wait = Wait::yes) : word_(s.word(kHdrTableLock)) {
    for (unsigned spins = 0; !held_; ++spins) {
      u64 holder = 0;
      held_ = cas(word_, holder, s.identity());
      if (held_ || wait == Wait::no) return;
      if (spins % 1024 == 1023) held_ = is_dead(holder) && cas(word_, holder, s.identity());
      if (spins > kPatience)
        throw Error("the bus's tables are locked by process " +
                    std::to_string(identity_pid(holder)) + ", which is stopped: continue or kill it");
      if (!held_) usleep(spins < 100 ? 0 : 100);
    }
  }
  ~TableLock() {
    if (held_) store(word_, 0, Order::release);
  }
  bool held() const { return held_; }

 private:
  static constexpr unsigned kPatience = 30'000;  // at 100 us or more: a few seconds
  u64& word_;
  bool held_ = false;
};

// Text in shared memory goes word by word: every access to the segment is an atomic word.
void write_text(Segment& s, u64 offset, const std::string& text) {
  for (u64 at = 0; at < text.size(); at += 8) {
    u64 word = 0;
    std::memcpy(&word, text.data() + at, std::min<u64>(8, text.size() - at));
    store(s.word(offset + at), word);
  }
}

std::string read_text(const Segment& s, u64 offset, u64 length, u64 most) {
  if (length > most) throw Error("a name in the segment claims " + std::to_string(length) + " bytes");
  std::string text(round_up(length, 8), '\0');
  for (u64 at = 0; at < text.size(); at += 8) {
    const u64 word = load(s.word(offset + at));
    std::memcpy(text.data() + at, &word, 8);
  }
  text.resize(length);
  return text;
}

}  // namespace

u64 Tables::name_count() const {
  return std::min<u64>(load(s_.word(kHdrNameCount), Order::acquire), kNames);
}

std::string Tables::name_of(u64 id) const {
  if (id >= name_count())
    throw Error("no name with id " + std::to_string(id) + "; the bus has interned " +
                std::to_string(name_count()));
  return read_text(s_, name_base(id) + kNamText, load(s_.word(name_base(id) + kNamLength)), kNameBytes);
}

u64 Tables::intern(const std::string& name) {
  if (name.size() > kNameBytes)
    throw Error("the name " + name.substr(0, 40) + "... has " + std::to_string(name.size()) +
                " bytes of UTF-8; at most " + std::to_string(kNameBytes) + " fit");
  TableLock lock(s_);
  const u64 count = name_count();
  for (u64 id = 0; id < count; ++id)
    if (load(s_.word(name_base(id) + kNamLength)) == name.size() && name_of(id) == name) return id;
  if (count == kNames)
    throw Error("the name table is full (" + std::to_string(kNames) + "): " + name + " has no room");
  write_text(s_, name_base(count) + kNamText, name);
  store(s_.word(name_base(count) + kNamLength), name.size());
  store(s_.word(kHdrNameCount), count + 1, Order::release);
  return count;
}

GroupInfo Tables::group(unsigned index) const {
  const u64 base = group_base(index);
  const u64 flags = load(s_.word(base + kGrpFlags));
  GroupInfo info{index, read_text(s_, base + kGrpName, load(s_.word(base + kGrpNameLength)),
                                  kGroupNameBytes),
                 (flags & 1) != 0, (flags & 4) != 0, {}};
  if ((flags & 2) != 0)
    for (u64 i = 0; i < kNames / 64; ++i)
      info.hooks.push_back(load(s_.word(base + kGrpHooks + i * 8)));
  return info;
}

std::optional<GroupInfo> Tables::find_group(const std::string& name) const {
  const u64 mask = group_mask();
  for (unsigned g = 0; g < kGroups; ++g)
    if ((mask >> g) & 1) {
      GroupInfo info = group(g);
      if (info.name == name) return info;
    }
  return std::nullopt;
}

GroupInfo Tables::add_group(const std::string& name, bool at_least_once, bool temporary,
                            const std::vector<u64>* hooks) {
  if (name.empty() || name.size() > kGroupNameBytes)
    throw Error("a group's name must have 1.." + std::to_string(kGroupNameBytes) + " bytes, not " +
                std::to_string(name.size()));
  TableLock lock(s_);
  if (auto found = find_group(name)) return *found;
  const u64 mask = group_mask();
  const auto index = static_cast<unsigned>(std::countr_one(mask & 0xFF));
  if (index >= kGroups)
    throw Error("no room for group " + name + ": a bus has at most " + std::to_string(kGroups) +
                " groups; let its readers join an existing one");
  const u64 base = group_base(index);
  write_text(s_, base + kGrpName, name);
  store(s_.word(base + kGrpNameLength), name.size());
  store(s_.word(base + kGrpFlags), (at_least_once ? 1 : 0) | (hooks != nullptr ? 2 : 0) | (temporary ? 4 : 0));
  for (u64 i = 0; i < kNames / 64; ++i) store(s_.word(base + kGrpHooks + i * 8), 0);
  if (hooks != nullptr)
    for (const u64 hook : *hooks) {
      u64& bits = s_.word(base + kGrpHooks + hook / 64 * 8);
      store(bits, load(bits) | (1ULL << (hook % 64)));
    }
  for (u64 shard = 0; shard < s_.geometry().shards; ++shard) {
    const ShardMemory m = s_.shard(shard);
    store(m.hint(index), load(m.wseq(), Order::acquire) & kSeqMask);
  }
  // From now on it is seen.
  std::atomic_ref<u64>(s_.word(kHdrGroupMask)).fetch_or((1ULL | 1ULL << kActiveShift) << index);
  return group(index);
}

u64 Tables::register_owner(unsigned group) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    std::optional<TableLock> lock(std::in_place, s_);  // the group is not let go in between
    for (u64 index = 1; index < kOwners; ++index) {
      u64 word = load(owner_word(index), Order::acquire);
      if (identity_pid(word) != 0) continue;
      const u64 generation = (identity_generation(word) + 1) & 0x3FF;
      if (!cas(owner_word(index), word, s_.identity() | generation)) continue;
      store(s_.word(kOwnersOffset + index * kOwnerStride + 8), group);
      std::atomic_ref<u64>(s_.word(kHdrGroupMask)).fetch_or(1ULL << kActiveShift << group);
      return make_owner(index, generation);
    }
    lock.reset();
    reap_dead();
  }
  throw Error("no room for another member: " + std::to_string(kOwners - 1) +
              " live subscriptions hold this bus; close some");
}

void Tables::let_go_of_empty_groups() {
  TableLock lock(s_, TableLock::Wait::no);  // a push must not wait; the next one tries again
  if (!lock.held()) return;
  u64 empty = group_mask() & 0xFF;
  for (unsigned g = 0; g < kGroups; ++g)
    if ((empty >> g) & 1 && (load(s_.word(group_base(g) + kGrpFlags)) & 4) == 0) empty &= ~(1ULL << g);
  for (u64 index = 1; index < kOwners; ++index)
    if (identity_pid(load(owner_word(index), Order::acquire)) != 0)
      empty &= ~(1ULL << (load(s_.word(kOwnersOffset + index * kOwnerStride + 8)) & 63));
  if (empty != 0)
    std::atomic_ref<u64>(s_.word(kHdrGroupMask)).fetch_and(~(empty << kActiveShift));
}

void Tables::pass_over(unsigned group) {
  std::atomic_ref<u64>(s_.word(kHdrGroupMask)).fetch_and(~(1ULL << kActiveShift << group));
  for (u64 index = 1; index < kOwners; ++index) {
    const u64 word = load(owner_word(index), Order::acquire);
    if (identity_pid(word) != 0 && load(s_.word(kOwnersOffset + index * kOwnerStride + 8)) == group)
      reap_owner(make_owner(index, identity_generation(word)), group);
  }
}

void Tables::stay_in(unsigned group) {
  const u64 active = 1ULL << kActiveShift << group;
  if ((group_mask() & active) == 0)
    std::atomic_ref<u64>(s_.word(kHdrGroupMask)).fetch_or(active);
}

void Tables::retire(const std::string& name) {
  const auto found = find_group(name);
  if (!found) throw Error("no group " + name + " to retire");
  std::atomic_ref<u64>(s_.word(group_base(found->index) + kGrpFlags)).fetch_or(4);
  let_go_of_empty_groups();
}

void Tables::free_owner(u64 owner) {
  const u64 index = owner >> 10;
  u64 word = load(owner_word(index), Order::acquire);
  if (identity_generation(word) == (owner & 0x3FF)) cas(owner_word(index), word, word & 0x3FF);
}

unsigned Tables::reap_owner(u64 owner, std::optional<unsigned> only_group) {
  unsigned count = 0;
  const u64 mask = group_mask();
  for (unsigned g = 0; g < kGroups; ++g) {
    if (((mask >> g) & 1) == 0 || (only_group && *only_group != g)) continue;
    const bool again = (load(s_.word(group_base(g) + kGrpFlags)) & 1) != 0;
    for (u64 shard = 0; shard < s_.geometry().shards; ++shard) {
      ShardMemory m = s_.shard(shard);
      count += ShardRing::reap(m, g, owner, again);
    }
  }
  if (count != 0) s_.ring();
  return count;
}

unsigned Tables::reap_dead() {
  unsigned count = 0;
  for (u64 index = 1; index < kOwners; ++index) {
    const u64 word = load(owner_word(index), Order::acquire);
    if (identity_pid(word) == 0 || identity_of(word) == s_.identity() || !is_dead(word)) continue;
    const u64 owner = make_owner(index, identity_generation(word));
    count += reap_owner(owner);
    free_owner(owner);
  }
  return count;
}

unsigned Tables::reap_pid(u64 pid) {
  unsigned count = 0;
  for (u64 index = 1; index < kOwners; ++index) {
    const u64 word = load(owner_word(index), Order::acquire);
    if (identity_pid(word) == 0 || identity_pid(word) != pid) continue;
    const u64 owner = make_owner(index, identity_generation(word));
    count += reap_owner(owner);
    // A caller that was wrong about the death loses nothing: the member keeps its id and goes on,
    // and its release of what was taken fails.
    if (is_dead(word)) free_owner(owner);
  }
  return count;
}

}  // namespace spmc
