// The kernels of `rescale` on CUDA; the order of the sums is that of core/moments.h.
// tests/test_reduce_body.py runs this file on the host, so it uses no warp intrinsics.
#pragma once
#include "../core/moments.h"
#include "reduce.cuh"

namespace fs::gpu {

constexpr int kMomentThreads = kLanes / kReducePiece;
static_assert(kMomentThreads == kStrands, "one strand per thread");

// Folds moments[0..n) in halves into moments[0]. All threads of the block call it.
FS_DEVICE void fold_block(Moments* moments, int n, int t) {
  for (int half = n / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = t; i < half; i += kMomentThreads) moments[i] = moments[i] + moments[i + half];
  }
  __syncthreads();
}

FS_HD void write_rescaled(const RescaleArgs& a, int64_t sample, const Moments& sum, int t) {
  if (t >= kColumns) return;
  const int64_t step = step_of(a, sample);
  const double* row = a.table + step * kColumns;
  a.out[sample * kColumns + t] =
      exists(a, step) ? rescaled(row, t, a.cond, a.uncond, rescale_factor(sum, a.numel, row)) : missing(t);
}

// One block of threads per block of elements. With one block per sample it also writes the row.
template <class S, bool kVector>
__global__ void __launch_bounds__(kMomentThreads, sizeof(S) == 8 ? 4 : 8)
    rescale_blocks(const __grid_constant__ RescaleArgs a, int64_t blocks, Moments* to) {
  __shared__ Moments moments[kLanes];
  const int t = threadIdx.x;
  const int64_t sample = blockIdx.x / blocks, block = blockIdx.x - sample * blocks;
  const Operand &cond = a.terms[a.cond], &uncond = a.terms[a.uncond];
  const int64_t step = step_of(a, sample);
  const S weight = exists(a, step) ? static_cast<S>(a.table[step * kColumns + kGuidance]) : S(0);
  // Pieces of four lanes at a time, or one lane after the other: registers.
  constexpr int kAt = kVector ? kReducePiece : 1;
  FS_ROLLED
  for (int lane = t * kReducePiece; lane < (t + 1) * kReducePiece; lane += kAt) {
    Moments sums[kAt] = {};
    S first_c[kAt], first_u[kAt], c[kAt], u[kAt];
    take<S, kVector>(a, cond, sample, 0, S(0), first_c);
    take<S, kVector>(a, uncond, sample, 0, S(0), first_u);
    const double c_shift = first_c[0], e_shift = guided(first_c[0], first_u[0], weight);
    FS_ROLLED
    for (int round = 0; round < kRounds; ++round) {
      const int64_t i = block * kMomentBlock + round * kLanes + lane;
      if (i >= a.numel) break;
      take<S, kVector>(a, cond, sample, i, S(0), c);  // whole pieces only, or single elements
      take<S, kVector>(a, uncond, sample, i, S(0), u);
      FS_UNROLL
      for (int e = 0; e < kAt; ++e) {
        const double dc = c[e] - c_shift, de = guided(c[e], u[e], weight) - e_shift;
        sums[e] = sums[e] + Moments{dc, dc * dc, de, de * de};
      }
    }
    FS_UNROLL
    for (int e = 0; e < kAt; ++e) moments[lane + e] = sums[e];
  }
  fold_block(moments, kLanes, t);
  if (blocks == 1)
    write_rescaled(a, sample, moments[0], t);
  else if (t == 0)
    to[sample * blocks + block] = moments[0];
}

// One block of threads per sample: the strands, then the row.
static __global__ void __launch_bounds__(kMomentThreads)
    rescale_rows(const __grid_constant__ RescaleArgs a, int64_t blocks, const Moments* from) {
  __shared__ Moments strands[kStrands];
  const int t = threadIdx.x;
  const int64_t sample = blockIdx.x;
  Moments sum = {};
  for (int64_t i = t; i < blocks; i += kStrands) sum = sum + from[sample * blocks + i];
  strands[t] = sum;
  fold_block(strands, kStrands, t);
  write_rescaled(a, sample, strands[0], t);
}

inline int64_t moment_blocks(const RescaleArgs& a) {
  return a.numel > kMomentBlock ? (a.numel + kMomentBlock - 1) / kMomentBlock : 1;
}

template <class S, bool kVector, class On>
void run_blocks(const RescaleArgs& a, Moments* memory, const On& on) {
  const int64_t blocks = moment_blocks(a);
  on.launch(rescale_blocks<S, kVector>, a.batch * blocks, kMomentThreads, 0, a, blocks, memory);
  if (blocks > 1) on.launch(rescale_rows, a.batch, kMomentThreads, 0, a, blocks, memory);
}

// `memory`: room for the moments of all blocks, unless there is one per sample.
template <class On>
void run_rescale(const RescaleArgs& a, Moments* memory, const On& on) {
  if (a.batch == 0) return;
  if (a.wide)
    run_blocks<double, false>(a, memory, on);
  else if (in_vectors(a))
    run_blocks<float, true>(a, memory, on);
  else
    run_blocks<float, false>(a, memory, on);
}

}  // namespace fs::gpu
