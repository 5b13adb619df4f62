// Which shape of launch a call of `update` gets.
//
// Nothing is tuned at run time: a first call that measures would be slow, and could not be captured in a graph. The
// rule below comes from the static model of docs/kernels.md ("predicted"); `python -m benchmarks.variants --gpu`
// measures all variants and prints what the rule should be.
#pragma once
#include "layout.h"

namespace fs::gpu {

// Enough blocks to give every processor 2048 threads, twice what the registers hold at once, so that the last wave is
// short; and then up to 8 pieces a thread, so that staging a row is paid once for them.
constexpr Variant kStrided = {kBlock, 2048, 8, false};

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
