// Dense buffers of a sample's terms, or of its prediction before the limits, for the ops that reduce.
// Compiled once per instruction set (FS_ISA).
#pragma once
#include "../reduce_args.h"
#include "span.h"

namespace fs {
namespace FS_ISA {
namespace {

constexpr int kReduceTile = 2048;

// The dtype of all terms that `used` names, as a kind.
FS_HD Kind kind_of(const ReduceArgs& a, uint32_t used) {
  bool f32 = !a.wide, bf16 = !a.wide;
  for (int j = 0; j < a.n_terms; ++j)
    if (used >> j & 1) f32 &= a.terms[j].dtype == DType::kF32, bf16 &= a.terms[j].dtype == DType::kBF16;
  return f32 ? Kind::kF32 : bf16 ? Kind::kBF16 : Kind::kAny;
}

// y = sum_j P_j term_j of tiles of a sample, in the arithmetic and order of update_.
template <class V>
class Prediction {
 public:
  using S = typename Lane<V>::Scalar;
  static constexpr int kWidth = Lane<V>::kWidth, kL = 4;

  Prediction(const ReduceArgs& args, int64_t sample) : a(args), sample(sample) {
    const double* row = row_of(a, sample);
    uint32_t used = 0;
    for (int j = 0; j < a.n_terms; ++j) {
      const S weight = static_cast<S>(row[4 * j]);
      if (weight == S(0)) continue;
      used |= 1u << j;
      weights[count] = weight;
      operands[count++] = &a.terms[j];
    }
    kind = kind_of(a, used);
  }

  // Elements [i0, i0 + n), n <= kReduceTile.
  void form(int64_t i0, int64_t n, S* y) const {
    int64_t done = 0;
    if (a.unit) {
      Span spans[kTerms];
      for (int j = 0; j < count; ++j)
        spans[j] = advance({operands[j]->data, operands[j]->dtype}, sample * operands[j]->batch_stride + i0);
      done = n / (kL * kWidth) * (kL * kWidth);
      if (kind == Kind::kF32)
        vectors<Kind::kF32>(spans, done, y);
      else if (kind == Kind::kBF16)
        vectors<Kind::kBF16>(spans, done, y);
      else
        vectors<Kind::kAny>(spans, done, y);
    }
    if (done == n) return;
    S x[kReduceTile];
    for (int64_t i = done; i < n; ++i) y[i] = S(0);
    for (int j = 0; j < count; ++j) {
      transfer<true>(a, *operands[j], sample, i0 + done, n - done, x);
      for (int64_t i = done; i < n; ++i) y[i] = fs::fma(weights[j], x[i - done], y[i]);
    }
  }

 private:
  template <Kind kind>
  void vectors(const Span* spans, int64_t n, S* y) const {
    using fs::fma;
    for (int64_t i = 0; i < n; i += kL * kWidth) {
      V acc[kL], x;
      FS_UNROLL
      for (int l = 0; l < kL; ++l) acc[l] = V(S(0));
      for (int j = 0; j < count; ++j) {
        const V weight(weights[j]);
        FS_UNROLL
        for (int l = 0; l < kL; ++l) {
          load<kind>(spans[j], i + l * kWidth, x);
          acc[l] = fma(weight, x, acc[l]);
        }
      }
      FS_UNROLL
      for (int l = 0; l < kL; ++l)
        store<Kind::kAny>({y, sizeof(S) == 8 ? DType::kF64 : DType::kF32}, i + l * kWidth, acc[l]);
    }
  }

  const ReduceArgs& a;
  int64_t sample;
  int count = 0;
  Kind kind;
  S weights[kTerms];
  const Operand* operands[kTerms];
};

}  // namespace
}  // namespace FS_ISA
}  // namespace fs
