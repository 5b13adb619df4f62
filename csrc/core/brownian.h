// Normals of the nodes of a virtual Brownian tree (docs/brownian.md). A node's number, never 0, is the high half of
// Philox's counter, which is 0 in every draw of a run: no node shares a block with a draw.
#pragma once
#include "normal.h"

namespace fs {

// What the first two rounds of Philox need of a node, for all counters with one high word.
struct NodeWords {
  uint32_t a, b, c, d;
};

FS_HD NodeWords words_of_node(uint64_t seed, uint32_t counter_high, uint64_t node) {
  const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t hi, lo, hi_next, lo_next;
  mul_wide(static_cast<uint32_t>(node), kPhiloxM1, hi, lo);
  mul_wide(hi ^ counter_high ^ k0, kPhiloxM0, hi_next, lo_next);
  return {static_cast<uint32_t>(node >> 32) ^ k1, lo ^ (k0 + kPhiloxW0), hi_next ^ (k1 + kPhiloxW1), lo_next};
}

// Words of a node from (hi, lo), the product of the low counter word and kPhiloxM0, which all nodes share: 8.5 rounds.
template <class U>
FS_HD void philox_of_node(U hi, U lo, const NodeWords& node, uint64_t seed, U r[4]) {
  U next_hi, next_lo;
  mul_wide(hi ^ U(node.a), kPhiloxM1, next_hi, next_lo);
  philox_rounds<2>(next_hi ^ U(node.b), next_lo, lo ^ U(node.c), U(node.d), seed, r);
}

// The words of one counter and node, plainly.
FS_HD void philox_of_node_at(uint64_t seed, uint64_t counter, uint64_t node, uint32_t r[4]) {
  philox_rounds<0>(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), static_cast<uint32_t>(node),
                   static_cast<uint32_t>(node >> 32), seed, r);
}

FS_HD void normals_of_node(uint64_t seed, uint64_t counter, uint64_t node, float z[4]) {
  uint32_t r[4];
  philox_of_node_at(seed, counter, node, r);
  box_muller<float, uint32_t>(r, z);
}
FS_HD void normals_of_node(uint64_t seed, uint64_t counter, uint64_t node, double z[2]) {
  uint32_t r[4];
  philox_of_node_at(seed, counter, node, r);
  box_muller_wide(r, z);
}

}  // namespace fs
