// Which shape of launch a call of `update` gets.
//
// Nothing is tuned at run time: a first call that measures would be slow, and could not be captured in a graph. The
// rule below comes from the static model of docs/kernels.md ("predicted"); `python -m benchmarks.variants --gpu`
// measures all variants and prints what the rule should be.
#pragma once
#include "layout.h"

namespace fs::gpu {

// The variants that are measured, by the names of benchmarks/variants.py. `fill` 1024: the blocks that are resident at
// once; 2048: twice that, so that the last wave is short. `turns` 8: the row is staged once for up to 8 pieces a
// thread.
//
//   strided     128, 2048, 8   the one that is chosen, for every call (predicted)
//   small       64, 2048, 8    more, smaller blocks: a state of less than 2^15 elements reaches more processors
//   large       256, 2048, 8   fewer blocks to start and to stage for
//   plain       128, 2048, 1   a piece a thread: no loop, most blocks
//   persistent  128, 1024, 0   one wave: every row staged once per resident block
//   X+early     programmatic dependent launch on top (sm_90 and later)
//
// Why `strided`, by the model of docs/kernels.md: what a thread does once costs as much as half a turn to a turn of its
// loop, so one piece a thread wastes issue slots where instructions are the limit (16-bit states with noise); a single
// wave ends as late as its slowest block, and saves less than 1/8 of a turn more. Small states wait for launch and two
// dependent loads, which no shape changes.
constexpr Variant kStrided = {kBlock, 2048, 8, false};

inline bool exists(const Variant& v) {
  return v.threads >= 32 && v.threads <= kMostThreads && v.threads % 32 == 0 && v.fill >= v.threads && v.turns >= 0;
}

// What benchmarks.variants may force in the place of the choice; threads == 0: nothing.
inline Variant& forced_variant() {
  static Variant forced = {0, 0, 0, false};
  return forced;
}

inline const Variant& variant_of(const UpdateArgs&) {
  const Variant& forced = forced_variant();
  return forced.threads ? forced : kStrided;
}

}  // namespace fs::gpu
