// The Python module `_spmc`: the segment and its tables through pybind11; the hot types are in
// py_producer.cpp and py_consumer.cpp.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "account.hpp"
#include "py_bridge.hpp"

namespace pyb = pybind11;

namespace spmc::py {

int fork_generation = 0;

bool same_process(int generation) {
  if (generation == fork_generation) return true;
  PyErr_SetString(contract.bus_error,
                  "this was opened before a fork and belongs to the parent process; attach by the "
                  "bus's handle in the child");
  return false;
}

namespace {

// Shared by everything that a bus or client hands out; the mapping lives until the last of them.
using SegmentPtr = std::shared_ptr<Segment>;

struct Group {
  unsigned index;
  std::string name;
  bool at_least_once;
};

pyb::dict layout() {
  pyb::dict d;
  const auto put = [&d](const char* name, u64 value) { d[name] = value; };
  put("magic", kMagic);
  put("version", kLayoutVersion);
  put("groups", kGroups);
  put("owners", kOwners);
  put("names", kNames);
  put("max_deliveries", kMaxDeliveries);
  put("name_bytes", kNameBytes);
  put("group_name_bytes", kGroupNameBytes);
  put("page", kPage);
  put("packet_header_bytes", kPacketHeaderBytes);
  put("max_slots", kMaxSlots);
  put("max_arena_bytes", kMaxArenaBytes);
  put("max_payload_bytes", kMaxPayloadBytes);
  put("max_shards", kMaxShards);
  put("hdr_magic", kHdrMagic);
  put("hdr_version", kHdrVersion);
  put("hdr_segment_bytes", kHdrSegmentBytes);
  put("hdr_shards", kHdrShards);
  put("hdr_slots", kHdrSlots);
  put("hdr_arena_bytes", kHdrArenaBytes);
  put("hdr_shards_offset", kHdrShardsOffset);
  put("hdr_shard_stride", kHdrShardStride);
  put("hdr_arena_offset", kHdrArenaOffset);
  put("hdr_max_payload", kHdrMaxPayload);
  put("hdr_source", kHdrSource);
  put("hdr_flags", kHdrFlags);
  put("hdr_owner_identity", kHdrOwnerIdentity);
  put("hdr_initial_seq", kHdrInitialSeq);
  put("hdr_state", kHdrState);
  put("hdr_group_mask", kHdrGroupMask);
  put("hdr_table_lock", kHdrTableLock);
  put("hdr_waiters", kHdrWaiters);
  put("hdr_doorbell", kHdrDoorbell);
  put("hdr_name_count", kHdrNameCount);
  put("active_shift", kActiveShift);
  put("state_live", kLive);
  put("state_finished", kFinished);
  put("state_closing", kClosing);
  put("owners_offset", kOwnersOffset);
  put("owner_stride", kOwnerStride);
  put("groups_offset", kGroupsOffset);
  put("group_stride", kGroupStride);
  put("grp_flags", kGrpFlags);
  put("grp_name_length", kGrpNameLength);
  put("grp_name", kGrpName);
  put("grp_hooks", kGrpHooks);
  put("names_offset", kNamesOffset);
  put("name_stride", kNameStride);
  put("nam_length", kNamLength);
  put("nam_text", kNamText);
  put("shards_offset", kShardsOffset);
  put("sh_wseq", kShWseq);
  put("sh_dropped", kShDropped);
  put("sh_published", kShPublished);
  put("sh_published_stride", kShPublishedStride);
  put("sh_harvest_select", kShHarvestSelect);
  put("sh_harvest", kShHarvest);
  put("sh_harvest_stride", kShHarvestStride);
  put("sh_hints", kShHints);
  put("sh_hint_stride", kShHintStride);
  put("sh_producer", kShProducer);
  put("sh_slots", kShSlots);
  put("slot_stride", kSlotStride);
  put("slot_descriptor", kSlotDescriptor);
  put("state_pending", kPending);
  put("state_claimed", kClaimed);
  put("state_delivered", kDelivered);
  put("state_lost", kLost);
  put("state_dead", kDead);
  put("state_missed", kMissed);
  put("state_left", kLeft);
  return d;
}

pyb::tuple account(const SegmentPtr& segment) {
  const Account account = read_account(*segment);
  pyb::list groups;
  for (const GroupAccount& g : account.groups)
    groups.append(pyb::make_tuple(g.name, g.delivered, g.lost, g.dead, g.again, g.ready, g.missed));
  return pyb::make_tuple(
      account.accepted, account.bytes,
      pyb::make_tuple(account.dropped[0], account.dropped[1], account.dropped[2], account.dropped[3]), groups);
}

Group add_group(const SegmentPtr& segment, const std::string& name, bool at_least_once,
                bool temporary, const std::optional<std::vector<u64>>& hooks) {
  const GroupInfo info =
      Tables(*segment).add_group(name, at_least_once, temporary, hooks ? &*hooks : nullptr);
  return {info.index, info.name, info.at_least_once};
}

std::optional<Group> find_group(const SegmentPtr& segment, const std::string& name) {
  const auto info = Tables(*segment).find_group(name);
  if (!info) return std::nullopt;
  return Group{info->index, info->name, info->at_least_once};
}

std::vector<std::string> group_names(const SegmentPtr& segment) {
  Tables tables(*segment);
  std::vector<std::string> names;
  for (unsigned g = 0; g < kGroups; ++g)
    if ((tables.group_mask() >> g) & 1) names.push_back(tables.group(g).name);
  return names;
}

pyb::object steal(PyObject* object) {
  if (object == nullptr) throw pyb::error_already_set();
  return pyb::reinterpret_steal<pyb::object>(object);
}

pyb::object subscribe(const SegmentPtr& segment, const std::string& name, u64 spin_us,
                      u64 poll_us) {
  const auto info = Tables(*segment).find_group(name);
  if (!info) throw Error("no group " + name);
  return steal(new_consumer(segment, *info, spin_us * 1000, poll_us * 1000));
}

pyb::object producer(const SegmentPtr& segment, u64 shard, u64 threshold, u64 window,
                     const std::optional<u64>& source) {
  segment->take_shard(shard);
  return steal(new_producer(segment, shard, CopyPolicy{threshold, window}, source));
}

SegmentPtr create(u64 shards, u64 slots, u64 arena_bytes, u64 max_payload, u64 source,
                  u64 initial_seq, bool checksum, const std::string& name) {
  pyb::gil_scoped_release unlocked;
  return Segment::create(
      {shards, slots, arena_bytes, max_payload, source, initial_seq, checksum, name});
}

u32 crc_of(const pyb::buffer& data) {
  const pyb::buffer_info info = data.request();
  return crc32c(static_cast<const u8*>(info.ptr), static_cast<u64>(info.size * info.itemsize));
}

}  // namespace
}  // namespace spmc::py

PYBIND11_MODULE(_spmc, m) {
  using namespace spmc;
  using namespace spmc::py;
  m.doc() = "The shared-memory ring of cpp_spmc (layout.hpp, ring.hpp)";
  pthread_atfork(nullptr, nullptr, [] { ++spmc::py::fork_generation; });
  pyb::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      PyErr_SetString(contract.bus_error != nullptr ? contract.bus_error : PyExc_RuntimeError,
                      error.what());
    }
  });
  m.def("setup", [](const pyb::args& args) {
    if (!set_contract(args.ptr())) throw pyb::error_already_set();
  });
  m.def("layout", &layout);
  m.def("crc32c", &crc_of);
  m.def("create", &create, pyb::kw_only(), pyb::arg("shards"), pyb::arg("slots"),
        pyb::arg("arena_bytes"), pyb::arg("max_payload"), pyb::arg("source"), pyb::arg("initial_seq"),
        pyb::arg("checksum"), pyb::arg("name"));
  m.def("attach_fd", &Segment::attach_fd);
  m.def("attach_name", &Segment::attach_name);
  pyb::class_<Group>(m, "Group")
      .def_readonly("index", &Group::index)
      .def_readonly("name", &Group::name)
      .def_readonly("at_least_once", &Group::at_least_once);
  pyb::class_<Segment, SegmentPtr>(m, "Segment")
      .def_property_readonly("fd", &Segment::fd)
      .def_property_readonly("shards", [](const Segment& s) { return s.geometry().shards; })
      .def_property_readonly("segment_bytes", [](const Segment& s) { return s.geometry().segment_bytes; })
      .def_property_readonly("max_payload", [](const Segment& s) { return s.geometry().max_payload; })
      .def("account", &account)
      .def("intern", [](const SegmentPtr& s, const std::string& n) { return Tables(*s).intern(n); })
      .def("name_of", [](const SegmentPtr& s, u64 id) { return Tables(*s).name_of(id); })
      .def("name_count", [](const SegmentPtr& s) { return Tables(*s).name_count(); })
      .def("add_group", &add_group, pyb::arg("name"), pyb::arg("at_least_once"), pyb::arg("temporary"), pyb::arg("hooks"))
      .def("find_group", &find_group)
      .def("group_names", &group_names)
      .def("subscribe", &subscribe, pyb::arg("name"), pyb::arg("spin_us"),
           pyb::arg("poll_us"))
      .def("producer", &producer, pyb::arg("shard"), pyb::arg("streaming_threshold"), pyb::arg("window"),
           pyb::arg("source") = pyb::none())
      .def("refuse", &Segment::refuse)
      .def("finish", &Segment::finish)
      .def("unlink", &Segment::unlink)
      .def("retire", [](const SegmentPtr& s, const std::string& name) { Tables(*s).retire(name); })
      .def("reap", [](const SegmentPtr& s, u64 pid) { return Tables(*s).reap_pid(pid); })
      .def("reap_dead", [](const SegmentPtr& s) { return Tables(*s).reap_dead(); });
  if (!add_producer_types(m.ptr()) || !add_consumer_types(m.ptr()) || !add_capture_types(m.ptr()))
    throw pyb::error_already_set();
}
