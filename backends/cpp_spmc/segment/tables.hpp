// The tables of a segment: interned names, groups, and the owner ids of their members.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "segment.hpp"

namespace spmc {

struct GroupInfo {
  unsigned index;
  std::string name;
  bool at_least_once;
  bool temporary;          // made late: it may be let go when it has no members
  std::vector<u64> hooks;  // kNames bits; empty: every hook
};

class Tables {
 public:
  explicit Tables(Segment& segment) : s_(segment) {}

  // Idempotent. Throws Error when the table is full or the name too long.
  u64 intern(const std::string& name);
  std::string name_of(u64 id) const;
  u64 name_count() const;

  std::optional<GroupInfo> find_group(const std::string& name) const;
  GroupInfo group(unsigned index) const;
  u64 group_mask() const { return load(s_.word(kHdrGroupMask), Order::seq_cst); }
  // Find or make. A new group sees what is published after this returns.
  GroupInfo add_group(const std::string& name, bool at_least_once, bool temporary,
                      const std::vector<u64>* hooks);
  // Temporary groups that have no member left get no more packets, until someone joins again.
  void let_go_of_empty_groups();

  // A temporary group whose members stand still while the ring is full: what they hold is lost to them,
  // what waits for them is passed over, and nothing comes until one of them looks again (`stay_in`).
  void pass_over(unsigned group);
  void stay_in(unsigned group);

  // From now on this group is temporary too. Throws Error when there is none of that name.
  void retire(const std::string& name);

  // An owner id (index | generation) for a member of `group`, which gets packets from now on.
  u64 register_owner(unsigned group);
  // Give back an id; its claims must be settled first.
  void free_owner(u64 owner);

  // Take back everything the owner table's dead processes hold. Returns packets taken back.
  unsigned reap_dead();
  // The same for one pid; `confirmed` is the caller's word that it is dead.
  unsigned reap_pid(u64 pid);
  // Settle the claims of one owner id.
  unsigned reap_owner(u64 owner, std::optional<unsigned> only_group = std::nullopt);

 private:
  u64& owner_word(u64 index) const { return s_.word(kOwnersOffset + index * kOwnerStride); }
  u64 group_base(unsigned index) const { return kGroupsOffset + index * kGroupStride; }
  u64 name_base(u64 id) const { return kNamesOffset + id * kNameStride; }
  Segment& s_;
};

}  // namespace spmc
