// Shared memory, and rows in it: with the weights of absent tensors zeroed, and what they ask for.
#pragma once
#include "../core/row.h"
#include "../update_args.h"

#if defined(__CUDACC__)
#define FS_DYNAMIC_SHARED(type, name)                    \
  extern __shared__ __align__(16) char dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared)
#define FS_DEVICE __device__ __forceinline__
#endif

namespace fs::gpu {

// A row as a block keeps it in shared memory. 208 bytes in float32: rows of neighbouring samples hit different banks.
template <class S>
struct alignas(16) Staged {
  Row<S> row;
  uint64_t skip[kNoises];  // counters before the draw of noise r
};

// Entry `column` of staged row `i`. Columns of absent terms, outputs and noises become zero, so that the body needs no
// counts. A step out of range becomes a row that turns every output into NaN and reads nothing.
// `terms`: how many there are; `pitch`: columns of the table, which may go on after the row.
template <class S, class Args>
FS_HD void stage(const Args& a, int terms, int pitch, int64_t sample, int column, Staged<S>& to) {
  const int64_t step = a.step[a.per_sample_step ? sample : 0];
  const bool good = step >= 0 && step < a.rows;
  const int group = column >> 2, lane = column & 3;
  const bool present = lane <= a.n_outs && (group < kTerms ? group < terms : group <= 8 + a.n_noises);
  const bool limit = column == kLo || column == kHi;
  double value = 0;
  if (good && (present || limit || column >= kDraw)) value = a.table[step * pitch + column];
  if (!good && group == 8 && !limit) value = static_cast<double>(NAN);
  if (column >= kDraw && column < kDraw + kNoises)
    to.skip[column - kDraw] = static_cast<uint64_t>(value) * static_cast<uint64_t>(a.chunks);
  else
    to.row.v[column] = static_cast<S>(value);
}

// The four weights of a group with one load.
template <class S>
struct alignas(16) Four {
  S v[4];
};

template <class S>
FS_HD Four<S> four(const Staged<S>& staged, int group) {
  Four<S> w;
  std::memcpy(&w, __builtin_assume_aligned(staged.row.v + 4 * group, 16), sizeof w);
  return w;
}

// What a row asks for: core's needs(), and whether D has a limit.
constexpr uint32_t kNeedsD = 1u << 8, kNeedsNoise = 1u << 9, kLimited = 1u << 16;

template <class S, int kK, int kO, int kR>
FS_HD uint32_t mask_of(const Staged<S>& staged) {
  const S* row = staged.row.v;
  return needs<S>(row, kK, kO, kR) | (row[kLo] > S(-INFINITY) || row[kHi] < S(INFINITY) ? kLimited : 0u);
}

}  // namespace fs::gpu
