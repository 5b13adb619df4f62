// What the kernels share that reduce the state to a row per sample: weights of the prediction, elements in pieces.
#pragma once
#include "../reduce_args.h"
#include "update.cuh"

namespace fs::gpu {

constexpr int kReducePiece = 4;  // elements that a thread takes at once

FS_HD int64_t step_of(const ReduceArgs& a, int64_t sample) { return a.step[a.per_sample_step ? sample : 0]; }
FS_HD bool exists(const ReduceArgs& a, int64_t step) { return step >= 0 && step < a.table_rows; }

// Column of the row of a sample whose step does not exist: update_ makes NaN of it.
FS_HD double missing(int column) { return column < kDraw ? static_cast<double>(NAN) : 0.0; }

// Whether all terms can be read piece by piece; float64 is read element by element.
inline bool in_vectors(const ReduceArgs& a) {
  bool whole = a.unit && !a.wide && a.numel % kReducePiece == 0;
  for (int j = 0; j < a.n_terms; ++j)
    whole &= reinterpret_cast<uintptr_t>(a.terms[j].data) % (kReducePiece * size_of(a.terms[j].dtype)) == 0 &&
             a.terms[j].batch_stride % kReducePiece == 0;
  return whole;
}

// kCount elements of a term from `i` on, in the compute type; those from numel on are `rest`.
template <class S, bool kVector, int kCount>
FS_HD void take(const ReduceArgs& a, const Operand& term, int64_t sample, int64_t i, S rest, S (&x)[kCount]) {
  Words words;
  if constexpr (kVector) {
    if (i >= a.numel) {
      FS_UNROLL
      for (int e = 0; e < kCount; ++e) x[e] = rest;
      return;
    }
    load<S, kCount>(term.data, term.dtype, sample * term.batch_stride + i, words);
    FS_UNROLL
    for (int e = 0; e < kCount; ++e) x[e] = get<S, kCount>(words, term.dtype, e);
  } else {
    FS_UNROLL
    for (int e = 0; e < kCount; ++e) {
      x[e] = rest;
      if (i + e >= a.numel) continue;
      load<S, 1>(term.data, term.dtype, offset_in(term, place_of(a, i + e), a.ndim, sample), words);
      x[e] = get<S, 1>(words, term.dtype, 0);
    }
  }
}

// The weights P of a row in the compute type, zero where there is no term; one entry per thread.
template <class S>
FS_HD void stage_weight(const ReduceArgs& a, int64_t step, int j, S* weights) {
  if (j < kTerms)
    weights[j] = j < a.n_terms && exists(a, step) ? static_cast<S>(a.table[step * kColumns + 4 * j]) : S(0);
}

// y = sum_j P_j term_j of a piece, in the order of core/row.h; zeros from numel on.
template <class S, bool kVector>
FS_HD void form(const ReduceArgs& a, const S* weights, int64_t sample, int64_t i, S (&y)[kReducePiece]) {
  FS_UNROLL
  for (int e = 0; e < kReducePiece; ++e) y[e] = S(0);
  FS_ROLLED
  for (int j = 0; j < a.n_terms; ++j) {
    if (weights[j] == S(0)) continue;
    S x[kReducePiece];
    take<S, kVector>(a, a.terms[j], sample, i, S(0), x);
    FS_UNROLL
    for (int e = 0; e < kReducePiece; ++e) y[e] = fs::fma(weights[j], x[e], y[e]);
  }
}

}  // namespace fs::gpu
