// Two spreads of a sample at once, summed in an order that depends on nothing but the number of elements.
// Blocks of kLanes * kRounds elements: lane l of a block adds its elements l, l + kLanes, ...; the lanes of a block are
// folded in halves; strand s adds blocks s, s + kStrands, ...; the strands are folded in halves. All in float64, of
// differences to the first element of the sample: then nothing cancels, and float32 elements are exact.
#pragma once
#include "row.h"

namespace fs {

constexpr int kLanes = 512, kRounds = 8, kMomentBlock = kLanes * kRounds, kStrands = 128;

// Sums of the differences of the conditional and the guided prediction, and of their squares.
struct Moments {
  double c, cc, e, ee;
};
FS_HD Moments operator+(const Moments& a, const Moments& b) { return {a.c + b.c, a.cc + b.cc, a.e + b.e, a.ee + b.ee}; }

// The guided prediction u + w (c - u), in the compute type.
template <class V>
FS_HD V guided(V c, V u, V w) {
  using fs::fma;
  return fma(w, c - u, u);
}

// Folds x[0..n) in halves into x[0], n a power of two.
template <class Sums>
inline void fold(Sums* x, int n) {
  for (int half = n / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] = x[i] + x[i + half];
}

FS_HD double root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return ::sqrt(x);
#endif
}

// phi std(c) / std(e) + 1 - phi, phi of the row, the spreads unbiased as in torch.std: NaN for a single element.
FS_HD double rescale_factor(const Moments& m, int64_t n, const double* row) {
  const double phi = row[kPhi];
  if (phi == 0) return 1;
  const double count = static_cast<double>(n), degrees = static_cast<double>(n - 1);
  const double c = (m.cc - m.c * m.c / count) / degrees, e = (m.ee - m.e * m.e / count) / degrees;
  const double std_c = root(c < 0 ? 0 : c), std_e = root(e < 0 ? 0 : e);  // rounding may leave less than 0
  return phi * (std_c / std_e) + (1 - phi);
}

// Column of the row in which the weights of two terms are multiplied by the factor.
FS_HD double rescaled(const double* row, int column, int cond, int uncond, double factor) {
  const double v = row[column];
  return column < 4 * kTerms && (column / 4 == cond || column / 4 == uncond) && v != 0 ? v * factor : v;
}

}  // namespace fs
