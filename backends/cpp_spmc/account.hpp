// The account of a bus, read from its segment by anyone, also after every other process died.
#pragma once

#include <string>
#include <vector>

#include "tables.hpp"

namespace spmc {

struct GroupAccount {
  std::string name;
  u64 delivered = 0, lost = 0, dead = 0, again = 0, ready = 0, missed = 0;
};

struct Account {
  u64 accepted = 0, bytes = 0;
  u64 dropped[4] = {};
  std::vector<GroupAccount> groups;
};

// Exact at every quiet moment. Nobody counts on the data path: the group words are the truth. What
// left the window was harvested by the producer, what is inside it is scanned here, and `delivered`
// is what remains; so a kill between an event and its counter cannot happen.
Account read_account(Segment& segment);

}  // namespace spmc
