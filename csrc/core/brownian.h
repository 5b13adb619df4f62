// Normals of the nodes of a virtual Brownian tree (docs/brownian.md). The words of Philox's counter are
//   low(counter), low(node), high(node) | 2^31, high(counter);
// the third is 0 in every draw of a run, so no node shares a block with a draw.
#pragma once
#include "normal.h"

namespace fs {

FS_HD uint32_t tag_of(uint64_t node) { return static_cast<uint32_t>(node >> 32) | 0x80000000u; }

// In this order of words the first two and a half rounds depend on the counter or on the node, and not on both: what is
// kept of a node, and what is kept of a counter for all nodes with one tag.
struct NodeWords {
  uint32_t a, b;
};
template <class U>
struct CounterWords {
  U n3, m1, hi, lo;
};

FS_HD NodeWords words_of_node(uint64_t seed, uint64_t node) {
  const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t hi, lo, hi_next, lo_next;
  mul_wide(tag_of(node), kPhiloxM1, hi, lo);
  mul_wide(hi ^ static_cast<uint32_t>(node) ^ k0, kPhiloxM0, hi_next, lo_next);
  return {hi_next ^ (k1 + kPhiloxW1), lo_next ^ (k1 + 2 * kPhiloxW1)};
}

template <class U>
FS_HD CounterWords<U> words_of_counter(uint64_t seed, U low, U high, uint32_t tag) {
  const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  CounterWords<U> w;
  U n2, m0;
  uint32_t tag_hi, tag_lo;
  mul_wide(tag, kPhiloxM1, tag_hi, tag_lo);
  mul_wide(low, kPhiloxM0, n2, w.n3);
  mul_wide(n2 ^ high ^ U(k1), kPhiloxM1, m0, w.m1);
  w.m1 = w.m1 ^ U(k0 + 2 * kPhiloxW0);
  mul_wide(m0 ^ U(tag_lo ^ (k0 + kPhiloxW0)), kPhiloxM0, w.hi, w.lo);
  return w;
}

// The words of Philox4x32-10, from there on.
template <class U>
FS_HD void philox_of_node(const CounterWords<U>& counter, const NodeWords& node, uint64_t seed, U r[4]) {
  U hi, lo;
  mul_wide(counter.n3 ^ U(node.a), kPhiloxM1, hi, lo);
  philox_rounds<3>(hi ^ counter.m1, lo, counter.hi ^ U(node.b), counter.lo, seed, r);
}

// The words of one counter and node, plainly.
FS_HD void philox_of_node_at(uint64_t seed, uint64_t counter, uint64_t node, uint32_t r[4]) {
  philox_rounds<0>(static_cast<uint32_t>(counter), static_cast<uint32_t>(node), tag_of(node),
                   static_cast<uint32_t>(counter >> 32), seed, r);
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
