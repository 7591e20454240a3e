// The sampling coin in C++: `toss` of contracts/coin.py, bit for bit.
#pragma once

#include <cstdint>

namespace asys::coin {

// u in [0, 1) of one call.
inline double toss(std::uint64_t key, std::uint64_t host_step, std::uint64_t weights_version,
                   std::uint64_t microbatch, std::uint64_t call_index) {
  std::uint64_t z = key + host_step * 0xDB4F0B9175AE2165u + weights_version * 0xBBE0563303A4615Fu +
                    microbatch * 0xA0F2EC75A1FE1575u + call_index * 0x89E182857D9ED689u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

}  // namespace asys::coin
