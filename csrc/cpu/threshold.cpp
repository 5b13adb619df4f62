// The passes of `threshold` on the CPU. Compiled once per instruction set with -DFS_ISA=<name>; see threshold.h.
#include "threshold.h"

#include "../core/select.h"
#include "reduce.h"

namespace fs {
namespace FS_ISA {
// Patterns of float64 in the vocabulary of U32, one lane.
struct U64 {
  static constexpr int kWidth = 1;
  uint64_t v;
  U64() = default;
  FS_HD explicit U64(uint64_t x) : v(x) {}
};
FS_HD U64 greater(U64 a, U64 b) { return U64(a.v > b.v ? a.v : b.v); }
FS_HD U64 least_above(U64 least, U64 x, U64 hi) { return U64(x.v > hi.v && x.v < least.v ? x.v : least.v); }
FS_HD U64 count_at_least(U64 count, U64 x, U64 bound) { return U64(count.v + (x.v >= bound.v)); }
FS_HD int64_t collect(U64 x, U64 lo, U64 hi, uint64_t* to) {
  *to = x.v;
  return x.v >= lo.v && x.v <= hi.v;
}
FS_HD U64 load_words(const uint64_t* p) { return U64(*p); }
FS_HD U64 load_patterns(const double* p) { return U64(fs::pattern_of(*p)); }
FS_HD U32 load_patterns(const float* p) { return bits_of(load_f32(p)) & U32(Pattern<float>::kLast); }
FS_HD void store_words(uint64_t* p, U64 x) { *p = x.v; }

namespace {

template <class S>
struct Words {
  using Vector = U32;
};
template <>
struct Words<double> {
  using Vector = U64;
};

// Folds the lanes of a vector of words.
template <class W, class Vector, class F>
W across(Vector x, F f) {
  W lanes[Vector::kWidth];
  store_words(lanes, x);
  W r = lanes[0];
  for (int i = 1; i < Vector::kWidth; ++i) r = f(r, lanes[i]);
  return r;
}

template <class W, class Vector>
int64_t at_least(const W* x, int64_t n, W bound) {
  Vector counts(W(0));
  int64_t i = 0;
  for (; i + Vector::kWidth <= n; i += Vector::kWidth)
    counts = count_at_least(counts, load_words(x + i), Vector(bound));
  int64_t count = across<W>(counts, [](W s, W t) { return s + t; });
  for (; i < n; ++i) count += x[i] >= bound;
  return count;
}

// The from_top-th largest of x[0..n), n <= kGather, bit by bit; bits below `last` stay zero.
template <class S, class W = typename Pattern<S>::Word>
W bitwise(const W* x, int64_t n, int64_t from_top, int last) {
  using Vector = typename Words<S>::Vector;
  constexpr int kEvery = 8, kWorthwhile = 8 * Vector::kWidth;
  alignas(64) W kept[kGather + Vector::kWidth];
  W value = 0;
  for (int bit = Pattern<S>::kBits - 1; bit >= last; --bit) {
    const W wish = value | W(1) << bit, rest = (W(1) << bit) - 1;
    if (at_least<W, Vector>(x, n, wish) >= from_top) value = wish;
    if ((Pattern<S>::kBits - bit) % kEvery != 0 || n < kWorthwhile) continue;
    // From here on only those count that share the bits known.
    const W hi = value | rest;
    if (hi < Pattern<S>::kLast) from_top -= at_least<W, Vector>(x, n, hi + 1);
    int64_t count = 0, i = 0;
    for (; i + Vector::kWidth <= n; i += Vector::kWidth)
      count += collect(load_words(x + i), Vector(value), Vector(hi), kept + count);
    for (; i < n; ++i) {
      kept[count] = x[i];
      count += x[i] >= value && x[i] <= hi;
    }
    x = kept, n = count;
  }
  return value;
}

// Looks at n elements: patterns of the range are appended to `kept`, which has room for a vector more; says how many.
template <class Vector, class W, class S>
int64_t look(const S* y, int64_t n, W lo, W hi, Vector& greatest, Vector& above, W* kept) {
  int64_t count = 0, i = 0;
  for (; i + Vector::kWidth <= n; i += Vector::kWidth) {
    const Vector v = load_patterns(y + i);
    greatest = greater(greatest, v);
    above = least_above(above, v, Vector(hi));
    count += collect(v, Vector(lo), Vector(hi), kept + count);
  }
  for (; i < n; ++i) {
    const W x = fs::pattern_of(y[i]);
    greatest = greater(greatest, Vector(x));
    above = least_above(above, Vector(x), Vector(hi));
    kept[count] = x;
    count += x >= lo && x <= hi;
  }
  return count;
}

template <class V>
void pass_of(const ThresholdArgs& a, int64_t sample, int64_t begin, int64_t end, Pass& p) {
  using S = typename Lane<V>::Scalar;
  using W = typename Pattern<S>::Word;
  using Vector = typename Words<S>::Vector;
  constexpr int kPad = Vector::kWidth;
  const Prediction<V> prediction(a, sample);
  const W lo = static_cast<W>(p.lo), hi = static_cast<W>(p.hi);
  Vector greatest(W(0)), above(Pattern<S>::kLast);
  alignas(64) S y[kReduceTile];
  alignas(64) W kept[kReduceTile + kPad];
  uint32_t* bins = static_cast<uint32_t*>(p.memory);
  for (int64_t i0 = begin; i0 < end; i0 += kReduceTile) {
    const int64_t n = end - i0 < kReduceTile ? end - i0 : kReduceTile;
    prediction.form(i0, n, y);
    if (p.shift < 0) {
      const int64_t count = look(y, n, lo, hi, greatest, above, kept);
      std::memcpy(static_cast<W*>(p.memory) + p.kept, kept, count * sizeof(W));
      p.kept += count;
      continue;
    }
    const W low = lo + (static_cast<W>(p.floor) << p.shift);
    const int64_t count = look(y, n, low, hi, greatest, above, kept);
    if (i0 == begin && count >= p.from_top)  // the first tile alone shows where v_k is not
      p.first = p.floor = static_cast<int64_t>((bitwise<S>(kept, count, p.from_top, p.shift) - lo) >> p.shift);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t digit = static_cast<int64_t>((kept[i] - lo) >> p.shift);
      if (digit < p.floor) continue;
      ++bins[digit];
      ++p.kept;
    }
    while (p.kept - bins[p.floor] >= p.from_top) p.kept -= bins[p.floor++];
  }
  p.greatest = across<W>(greatest, [](W s, W t) { return s > t ? s : t; });
  p.above = across<W>(above, [](W s, W t) { return s < t ? s : t; });
}

template <class S, class W = typename Pattern<S>::Word>
Found found_in(const W* x, int64_t n, int64_t from_top) {
  using Vector = typename Words<S>::Vector;
  const W value = bitwise<S>(x, n, from_top, 0);
  if (from_top == 1 || at_least<W, Vector>(x, n, value + 1) < from_top - 1) return {value, value};
  Vector least(Pattern<S>::kLast);
  int64_t i = 0;
  for (; i + Vector::kWidth <= n; i += Vector::kWidth) least = least_above(least, load_words(x + i), Vector(value));
  W next = across<W>(least, [](W s, W t) { return s < t ? s : t; });
  for (; i < n; ++i) next = x[i] > value && x[i] < next ? x[i] : next;
  return {value, next};
}

}  // namespace

void threshold_pass(const ThresholdArgs& a, int64_t sample, int64_t begin, int64_t end, Pass& p) {
  if (a.wide)
    pass_of<double>(a, sample, begin, end, p);
  else
    pass_of<F32>(a, sample, begin, end, p);
}

Found threshold_found(bool wide, const void* patterns, int64_t n, int64_t from_top) {
  return wide ? found_in<double>(static_cast<const uint64_t*>(patterns), n, from_top)
              : found_in<float>(static_cast<const uint32_t*>(patterns), n, from_top);
}

}  // namespace FS_ISA
}  // namespace fs
