// Exact selection by digits, and what thresholding makes of the quantile. Host and device.
// The magnitude of a float, read as a whole number (its pattern), has the order of the magnitudes; NaNs come last.
#pragma once
#include "row.h"

namespace fs {

template <class S>
struct Pattern;
template <>
struct Pattern<float> {
  using Word = uint32_t;
  static constexpr int kBits = 31;
  static constexpr Word kInfinity = 0x7f800000u, kLast = 0x7fffffffu;
};
template <>
struct Pattern<double> {
  using Word = uint64_t;
  static constexpr int kBits = 63;
  static constexpr Word kInfinity = 0x7ff0000000000000u, kLast = 0x7fffffffffffffffu;
};

FS_HD uint32_t pattern_of(float x) { return bits_of(x) & 0x7fffffffu; }
FS_HD uint64_t pattern_of(double x) {
  uint64_t u;
  std::memcpy(&u, &x, 8);
  return u & 0x7fffffffffffffffu;
}
FS_HD double value_of(uint32_t pattern) { return static_cast<double>(float_of(pattern)); }
FS_HD double value_of(uint64_t pattern) {
  double x;
  std::memcpy(&x, &pattern, 8);
  return x;
}

// A pass over the elements settles one digit: 16 bits, the last one 15. So float32 takes two passes, float64 four.
constexpr int kDigit = 16, kBins = 1 << kDigit;
template <class S>
constexpr int kLevels = Pattern<S>::kBits / kDigit + 1;
template <class S>
FS_HD int shift_of(int level) {
  return level + 1 < kLevels<S> ? Pattern<S>::kBits - kDigit * (level + 1) : 0;
}

// Where a quantile lies in n sorted numbers v_0 <= v_1 <= ...: v_k + fraction (v_k+1 - v_k), k + fraction = ratio
// (n-1).
struct Rank {
  int64_t from_top;  // n - k: v_k is the from_top-th largest
  double fraction;
};
FS_HD Rank rank_of(double ratio, int64_t n) {
  const double at = ratio * static_cast<double>(n - 1);
  const int64_t k = static_cast<int64_t>(at);
  return {n - k, at - static_cast<double>(k)};
}

FS_HD double interpolate(double low, double high, double fraction) {
  if (fraction == 0 || low == high) return low;  // also where both are infinite, and where there is no v_k+1
  return low + fraction * (high - low);
}

// A NaN stays; with low > high it is high, as in torch.clamp.
FS_HD double limit_scale(double q, double low, double high) {
  const double s = q < low ? low : q;
  return s > high ? high : s;
}

// Column of the row that divides the prediction by s and limits it to [-1, 1]; a weight of zero stays one.
FS_HD double thresholded(const double* row, int column, double s) {
  const double v = row[column];
  if (column < 4 * kTerms && column % 4 == 0) return v == 0 ? v : v / s;
  return column == kLo ? -1.0 : column == kHi ? 1.0 : v;
}

}  // namespace fs
