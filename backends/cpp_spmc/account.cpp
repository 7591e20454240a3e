#include "account.hpp"

namespace spmc {
namespace {

void read_shard(Segment& s, const ShardMemory& m, u64 mask, Account& account,
                std::vector<GroupAccount>& groups) {
  const u64 slots = m.slots();
  const u64 initial = s.initial_seq();
  const u64 wseq = load(m.wseq(), Order::acquire);
  const u64 accepted = wseq - initial;
  account.accepted += accepted;
  for (unsigned reason = 0; reason < 4; ++reason)
    account.dropped[reason] += load(m.at(kShDropped + reason * 8));

  u64 record = kShPublished;
  const u64 other = kShPublished + kShPublishedStride;
  const auto behind = [&](u64 at) { return wseq - load(m.at(at)); };  // huge: beyond wseq
  if (behind(other) < behind(record)) record = other;
  account.bytes += load(m.at(record + 8));
  const u64 known = load(m.at(record + 16));

  const u64 harvest = kShHarvest + (load(m.at(kShHarvestSelect), Order::acquire) & 1) * kShHarvestStride;
  u64 from = load(m.at(harvest));
  if (wseq - from > slots) from = wseq - slots;  // the producer ran on while we read
  for (unsigned g = 0; g < kGroups; ++g) {
    if (((mask >> g) & 1) == 0) continue;
    GroupAccount& group = groups[g];
    Tally tally;
    u64 ready = 0;
    for (u64 seq = from; seq != wseq; ++seq) {
      const u64 word = load(m.word(seq, g), Order::acquire);
      if (word_seq(word) != (seq & kSeqMask)) continue;
      tally.add(g, word);
      if (!is_final(word)) ++ready;
    }
    const u64 lost = load(m.at(harvest + 8 + g * 8)) + tally.lost[g];
    const u64 dead = load(m.at(harvest + 64 + g * 8)) + tally.dead[g];
    const u64 left = load(m.at(harvest + 176 + g * 8)) + tally.left[g];
    const u64 missed = left + ((known >> g) & 1 ? load(m.at(record + 24 + g * 8)) : accepted);
    group.lost += lost;
    group.dead += dead;
    group.again += load(m.at(harvest + 120 + g * 8)) + tally.again[g];
    group.ready += ready;
    group.missed += missed;
    group.delivered += accepted - missed - lost - dead - ready;
  }
}

}  // namespace

Account read_account(Segment& segment) {
  Tables tables(segment);
  const u64 mask = tables.group_mask();
  Account account;
  std::vector<GroupAccount> groups(kGroups);
  for (u64 shard = 0; shard < segment.geometry().shards; ++shard)
    read_shard(segment, segment.shard(shard), mask, account, groups);
  for (unsigned g = 0; g < kGroups; ++g)
    if ((mask >> g) & 1) {
      groups[g].name = tables.group(g).name;
      account.groups.push_back(groups[g]);
    }
  return account;
}

}  // namespace spmc
