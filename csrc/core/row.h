// The layout of a row (docs/row.md) and its arithmetic on a few lanes.
#pragma once
#include "macros.h"

namespace fs {

constexpr int kTerms = 8, kOutputs = 3, kNoises = 2, kColumns = 48;
constexpr int kLo = 32, kHi = 36, kTime = 40, kDraw = 44, kGuidance = 46, kPhi = 47;

// A row after conversion to the compute type. Four entries of a group lie side by side: one 16-byte load in float32.
template <class S>
struct alignas(16) Row {
  S v[kColumns];
};

// V is a lane type (float, double, SIMD lanes); S its scalar. `lanes` is how many V a caller holds per tensor.
template <class S, class V, int L>
FS_HD void add_weighted(S weight, const V x[L], V acc[L]) {
  FS_UNROLL
  for (int i = 0; i < L; ++i) acc[i] = fma(V(weight), x[i], acc[i]);
}
template <class S, class V, int L>
FS_HD void accumulate(S weight, const V x[L], V acc[L]) {
  if (weight == S(0)) return;  // a zero weight is skipped, so a NaN behind it reaches nothing
  add_weighted<S, V, L>(weight, x, acc);
}

template <class V>
FS_HD V clamp(V y, V lo, V hi) {
  return y < lo ? lo : (y > hi ? hi : y);  // a NaN stays
}

// The limits of D.
template <class S, class V, int L>
FS_HD void limit(const S* row, V d[L]) {
  FS_UNROLL
  for (int i = 0; i < L; ++i) d[i] = clamp(d[i], V(row[kLo]), V(row[kHi]));
}

// D of one element group. x[j] are the K terms.
template <class S, class V, int L, int K>
FS_HD void predict(const S* row, const V (&x)[K][L], int terms, V d[L]) {
  FS_UNROLL
  for (int i = 0; i < L; ++i) d[i] = V(S(0));
  FS_UNROLL
  for (int j = 0; j < K; ++j)
    if (j < terms) accumulate<S, V, L>(row[4 * j], x[j], d);
  limit<S, V, L>(row, d);
}

// Output k of one element group. xi[r] are the R noises.
template <class S, class V, int L, int K, int R>
FS_HD void combine(const S* row, int k, const V (&x)[K][L], int terms, const V d[L], const V (&xi)[R][L], int noises,
                   V acc[L]) {
  FS_UNROLL
  for (int i = 0; i < L; ++i) acc[i] = V(S(0));
  FS_UNROLL
  for (int j = 0; j < K; ++j)
    if (j < terms) accumulate<S, V, L>(row[4 * j + 1 + k], x[j], acc);
  accumulate<S, V, L>(row[kLo + 1 + k], d, acc);
  FS_UNROLL
  for (int r = 0; r < R; ++r)
    if (r < noises) accumulate<S, V, L>(row[kHi + 4 * r + 1 + k], xi[r], acc);
}

// Which inputs a row needs for `outputs` outputs. Bit j: term j; bit 8: D; bits 9, 10: noises.
template <class S>
FS_HD uint32_t needs(const S* row, int terms, int outputs, int noises) {
  uint32_t mask = 0;
  for (int k = 0; k < outputs; ++k) {
    for (int j = 0; j < terms; ++j) mask |= (row[4 * j + 1 + k] != S(0) ? 1u : 0u) << j;
    mask |= (row[kLo + 1 + k] != S(0) ? 1u : 0u) << 8;
    for (int r = 0; r < noises; ++r) mask |= (row[kHi + 4 * r + 1 + k] != S(0) ? 1u : 0u) << (9 + r);
  }
  if (mask & (1u << 8))
    for (int j = 0; j < terms; ++j) mask |= (row[4 * j] != S(0) ? 1u : 0u) << j;
  return mask;
}

}  // namespace fs
