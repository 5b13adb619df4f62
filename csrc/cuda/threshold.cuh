// The kernels of `threshold` on CUDA. Exact selection by digits of the patterns of core/select.h.
// A sample that fits the shared memory of a block is read once, by one kernel. Else the blocks of a sample count a
// digit of 16 bits per launch; the last block to finish settles the digit, and after the last digit writes the row.
// tests/test_reduce_body.py runs this file on the host, so it uses no warp intrinsics.
#pragma once
#include "../core/select.h"
#include "reduce.cuh"

namespace fs::gpu {

constexpr int kSelectBlock = 256;
constexpr int kByte = 8, kByteBins = 1 << kByte;  // a digit inside a block: one thread per value
static_assert(kByteBins == kSelectBlock, "a thread per value of a digit");
constexpr int kWindow = 4096;  // digits that a block counts in shared memory: 16 binades
constexpr int kChunk = 32;     // digits per thread and turn when a digit is settled
constexpr int kSamplesAtOnce = 64;

template <class S>
using Word = typename Pattern<S>::Word;
using Wide = unsigned long long;

// Where v_k is known to lie, per sample. Zero at first.
struct Select {
  Wide lo;           // the digits known
  int64_t from_top;  // its rank among the elements that share them; set with the first digit
  Wide greatest;     // pattern in the range, of one launch
  Wide nearest;      // kLast - the least pattern above the range, of one launch
  unsigned done;     // blocks that have finished, of one launch
  unsigned nan;      // whether some element is NaN
};

// In suffix order: sums[t] becomes the sum of sums[t..]. All threads of the block call it.
FS_DEVICE void suffix_sums(Wide* sums, int t) {
  for (int by = 1; by < kSelectBlock; by *= 2) {
    __syncthreads();
    const Wide more = t + by < kSelectBlock ? sums[t + by] : 0;
    __syncthreads();
    sums[t] += more;
  }
  __syncthreads();
}

FS_HD void write_row(const ThresholdArgs& a, int64_t sample, int64_t step, double s, int t) {
  if (t >= kColumns) return;
  a.out[sample * kColumns + t] = exists(a, step) ? thresholded(a.table + step * kColumns, t, s) : missing(t);
}

// One block per sample; patterns in dynamic shared memory.
template <class S, bool kVector>
__global__ void __launch_bounds__(kSelectBlock, sizeof(S) == 8 ? 2 : 4)
    threshold_small(const __grid_constant__ ThresholdArgs a) {
  FS_DYNAMIC_SHARED(Word<S>, patterns);
  __shared__ S weights[kTerms];
  __shared__ unsigned bins[kByteBins];
  __shared__ Wide sums[kSelectBlock], greatest, lo, next;
  __shared__ int64_t from_top;
  const int t = threadIdx.x;
  const int64_t sample = blockIdx.x, step = step_of(a, sample);
  const Rank rank = rank_of(a.ratio, a.numel);
  stage_weight(a, step, t, weights);
  if (t == 0) greatest = lo = 0, next = Pattern<S>::kLast, from_top = rank.from_top;
  __syncthreads();
  if (!exists(a, step) || a.numel == 0) return write_row(a, sample, step, limit_scale(a.low, a.low, a.high), t);
  Word<S> mine = 0;
  for (int64_t i = t * kReducePiece; i < a.numel; i += kSelectBlock * kReducePiece) {
    S y[kReducePiece];
    form<S, kVector>(a, weights, sample, i, y);
    FS_UNROLL
    for (int e = 0; e < kReducePiece; ++e) {
      if (i + e >= a.numel) continue;
      const Word<S> x = pattern_of(y[e]);
      patterns[i + e] = x;
      mine = x > mine ? x : mine;
    }
  }
  atomicMax(&greatest, static_cast<Wide>(mine));
  Word<S> width = Pattern<S>::kLast;  // of the range, less one
  FS_ROLLED
  for (int left = Pattern<S>::kBits; left > 0; left -= kByte) {
    const int shift = left > kByte ? left - kByte : 0;
    bins[t] = 0;
    __syncthreads();
    const Word<S> low = static_cast<Word<S>>(lo);
    for (int64_t i = t; i < a.numel; i += kSelectBlock) {
      const Word<S> at = patterns[i] - low;  // far away below the range
      if (at <= width) atomicAdd(&bins[at >> shift], 1u);
    }
    __syncthreads();
    sums[t] = bins[t];
    suffix_sums(sums, t);
    const Wide wanted = static_cast<Wide>(from_top), above = sums[t] - bins[t];
    __syncthreads();
    if (above < wanted && wanted <= sums[t]) lo += static_cast<Wide>(t) << shift, from_top -= above;
    width = (Word<S>(1) << shift) - 1;
    __syncthreads();
  }
  const Word<S> value = static_cast<Word<S>>(lo);
  if (from_top == 1) {
    Word<S> least = Pattern<S>::kLast;
    for (int64_t i = t; i < a.numel; i += kSelectBlock)
      least = patterns[i] > value && patterns[i] < least ? patterns[i] : least;
    atomicMin(&next, static_cast<Wide>(least));
  }
  __syncthreads();
  const double high = from_top == 1 ? value_of(static_cast<Word<S>>(next)) : value_of(value);
  const double q =
      greatest > Pattern<S>::kInfinity ? static_cast<double>(NAN) : interpolate(value_of(value), high, rank.fraction);
  write_row(a, sample, step, limit_scale(q, a.low, a.high), t);
}

// Settles a digit: bins are the counts of all digits, `top` the greatest one that occurs. Sets `digit`, `above` (the
// elements of the range with a greater digit) and `next` (the least greater digit that occurs, else kBins).
template <class Count>
FS_DEVICE void settle(const Count* bins, int top, Wide from_top, Wide* sums, int& digit, Wide& above, int& next,
                      int t) {
  if (t == 0) digit = -1, above = 0, next = kBins;
  __syncthreads();
  Wide seen = 0;
  for (int end = top + 1; end > 0; end -= kSelectBlock * kChunk) {
    const int first = end - kSelectBlock * kChunk + t * kChunk;  // may be below zero
    Wide own = 0;
    for (int d = first; d < first + kChunk; ++d)
      if (d >= 0) own += bins[d];
    __syncthreads();
    sums[t] = own;
    suffix_sums(sums, t);
    Wide higher = seen + sums[t] - own;
    const Wide total = seen + sums[0];
    if (higher < from_top && from_top <= higher + own) {  // one thread of all
      int d = first + kChunk - 1;
      for (Wide n = bins[d]; higher + n < from_top; n = bins[--d]) higher += n;
      digit = d, above = higher;
    }
    __syncthreads();
    for (int d = first; d < first + kChunk; ++d)
      if (d > digit && d >= 0 && bins[d] != 0) {
        atomicMin(&next, d);
        break;
      }
    __syncthreads();
    if (digit >= 0) return;
    seen = total;
  }
}

// How blocks lie over the samples of a launch.
struct SelectLayout {
  int64_t first, tiles;  // first sample; blocks of a sample
};

// Counts digit `level` of the samples of a launch. `bins`: kBins counts per sample of this level, zero at first.
template <class S, class Count, bool kVector>
__global__ void __launch_bounds__(kSelectBlock, sizeof(S) == 8 ? 2 : 4)
    threshold_level(const __grid_constant__ ThresholdArgs a, const __grid_constant__ SelectLayout l, int level,
                    Select* selects, Count* all_bins) {
  __shared__ S weights[kTerms];
  __shared__ unsigned window[kWindow];
  __shared__ Wide sums[kSelectBlock], greatest, nearest, above;
  __shared__ int top, digit, next, last;
  const int t = threadIdx.x;
  const int64_t local = blockIdx.x / l.tiles, tile = blockIdx.x - local * l.tiles;
  const int64_t sample = l.first + local, step = step_of(a, sample);
  Select& select = selects[local];
  Count* bins = all_bins + local * kBins;
  const int shift = shift_of<S>(level);
  if (!exists(a, step)) {
    if (shift == 0 && tile == 0) write_row(a, sample, step, 1.0, t);
    return;
  }
  const Rank rank = rank_of(a.ratio, a.numel);
  const Word<S> lo = static_cast<Word<S>>(select.lo);
  const Word<S> hi = level == 0 ? Pattern<S>::kLast : lo + ((Word<S>(1) << shift_of<S>(level - 1)) - 1);
  const Wide from_top = static_cast<Wide>(level == 0 ? rank.from_top : select.from_top);
  stage_weight(a, step, t, weights);
  for (int i = t; i < kWindow; i += kSelectBlock) window[i] = 0;
  if (t == 0) greatest = nearest = 0, top = 0;
  __syncthreads();
  const int64_t stride = l.tiles * kSelectBlock * kReducePiece;
  const int64_t begin = (tile * kSelectBlock + t) * kReducePiece;
  S y[kReducePiece];
  // The window begins where the first elements have their greatest digit near its end, with room for a binade more.
  form<S, kVector>(a, weights, sample, begin, y);
  FS_UNROLL
  for (int e = 0; e < kReducePiece; ++e) {
    const Word<S> x = pattern_of(y[e]);
    if (begin + e < a.numel && x >= lo && x <= hi) atomicMax(&top, static_cast<int>((x - lo) >> shift));
  }
  __syncthreads();
  const int room = top + 256 - (kWindow - 1), base = room < 0 ? 0 : room < kBins - kWindow ? room : kBins - kWindow;
  Word<S> most = 0, least = Pattern<S>::kLast;
  FS_ROLLED
  for (int64_t i = begin; i < a.numel; i += stride) {
    form<S, kVector>(a, weights, sample, i, y);
    FS_UNROLL
    for (int e = 0; e < kReducePiece; ++e) {
      const Word<S> x = pattern_of(y[e]);
      if (i + e >= a.numel) continue;
      if (x > hi) least = x < least ? x : least;
      if (x < lo || x > hi) continue;
      most = x > most ? x : most;
      const unsigned d = static_cast<unsigned>((x - lo) >> shift), at = d - static_cast<unsigned>(base);
      if (at < static_cast<unsigned>(kWindow))
        atomicAdd(&window[at], 1u);
      else
        atomicAdd(&bins[d], Count(1));
    }
  }
  atomicMax(&greatest, static_cast<Wide>(most));
  atomicMax(&nearest, static_cast<Wide>(Pattern<S>::kLast - least));
  __syncthreads();
  for (int i = t; i < kWindow; i += kSelectBlock)
    if (window[i] != 0) atomicAdd(&bins[base + i], static_cast<Count>(window[i]));
  if (t == 0) {
    atomicMax(&select.greatest, greatest);
    atomicMax(&select.nearest, nearest);
  }
  __threadfence();
  __syncthreads();
  if (t == 0) last = atomicAdd(&select.done, 1u) == static_cast<unsigned>(l.tiles) - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const Wide all_greatest = select.greatest, all_nearest = select.nearest;
  settle(bins, static_cast<int>((all_greatest - lo) >> shift), from_top, sums, digit, above, next, t);
  const Wide found = lo + (static_cast<Wide>(digit) << shift);
  const Wide rest = from_top - above;
  if (t == 0) {
    select.lo = found, select.from_top = static_cast<int64_t>(rest);
    select.greatest = select.nearest = 0, select.done = 0;
    if (level == 0) select.nan = all_greatest > Pattern<S>::kInfinity;
  }
  if (shift != 0) return;
  const Wide higher = rest > 1 ? found : next < kBins ? lo + static_cast<Wide>(next) : Pattern<S>::kLast - all_nearest;
  const double q = select.nan ? static_cast<double>(NAN)
                              : interpolate(value_of(static_cast<Word<S>>(found)),
                                            value_of(static_cast<Word<S>>(higher)), rank.fraction);
  write_row(a, sample, step, limit_scale(q, a.low, a.high), t);
}

}  // namespace fs::gpu
