// Runs of normals of one sample, by lanes. Compiled once per instruction set (FS_ISA).
#pragma once
#include "simd.h"

namespace fs {
namespace FS_ISA {
namespace {

// Vectors of counters whose words wait for Box-Muller. The rounds of Philox and Box-Muller are both long chains of
// dependent instructions; in loops of their own the processor works on several vectors at once. Measured with AVX-512:
// 0.57 ns per normal and core, against 0.72 in one loop.
constexpr int kWaiting = 8;

// Normals for `n` elements from a chunk boundary on; writes up to 4 vectors more. `ahead(i, count)` is called before
// the normals of elements [i, i + count) are made, `then(i)` when those of [0, i) are there.
template <class Ahead, class Then>
void normals(uint64_t seed, uint64_t counter, int64_t n, const Ahead& ahead, const Then& then, float* out) {
  constexpr int kWidth = U32::kWidth, kPiece = 4 * kWidth;
  if (n <= 4) {  // one counter: its latency is a third of that of the lanes
    normals_at(seed, counter, out);
    return then(n);
  }
  alignas(64) uint32_t words[kWaiting][4][kWidth];
  for (int64_t i = 0; i < n; i += kWaiting * kPiece) {
    const int64_t left = (n - i + kPiece - 1) / kPiece;
    const int count = left < kWaiting ? static_cast<int>(left) : kWaiting;
    const uint32_t low = static_cast<uint32_t>(counter), last = low + static_cast<uint32_t>(count * kWidth - 1);
    if (last < low) {  // the low word wraps here, and the lanes have one high word
      for (int64_t c = 0; c < count * kWidth; ++c) normals_at(seed, counter + c, out + i + 4 * c);
      then(i + count * kPiece);
      counter += count * kWidth;
      continue;
    }
    for (int v = 0; v < count; ++v) {
      ahead(i + v * kPiece, kPiece);
      const uint64_t c = counter + v * kWidth;
      U32 r[4];
      philox(U32(static_cast<uint32_t>(c)) + chunk_of_lane(), U32(static_cast<uint32_t>(c >> 32)), seed, r);
      FS_UNROLL
      for (int k = 0; k < 4; ++k) store_words(words[v][k], r[k]);
    }
    for (int v = 0; v < count; ++v) {
      U32 r[4];
      F32 z[4];
      FS_UNROLL
      for (int k = 0; k < 4; ++k) r[k] = load_words(words[v][k]);
      box_muller<F32, U32>(r, z);
      store_chunks(out + i + v * kPiece, z);
      then(i + (v + 1) * kPiece);
    }
    counter += count * kWidth;
  }
}
template <class Ahead, class Then>
void normals(uint64_t seed, uint64_t counter, int64_t n, const Ahead&, const Then& then, double* out) {
  for (int64_t i = 0; i < n; i += 2) normals_at(seed, counter++, out + i);
  then(n);
}

}  // namespace
}  // namespace FS_ISA
}  // namespace fs
