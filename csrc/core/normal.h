// Standard normals by Box-Muller (1958) with the same bits on every device.
// Only +, x, fma, correctly rounded sqrt and integer operations: no libm, no fast intrinsics.
// Constants: csrc/core/fit_polynomials.py.
#pragma once
#include "philox.h"

namespace fs {

// sqrt(-2 log u) for u in (0, 1].
template <class F, class U>
FS_HD F radius(F u) {
  // u = m 2^e, m in [2/3, 4/3), so that near u = 1 nothing cancels.
  const U shifted = bits_of(u) + U(0u - 0x3f2aaaabu);
  const F e = to_float_signed(shift_signed(shifted, 23));
  const F f = float_of((shifted & U(0x007fffffu)) + U(0x3f2aaaabu)) + F(-1.0f);
  F p = F(-0x1.1f242ap-2f);
  p = fma(p, f, F(0x1.3b0e72p-2f));
  p = fma(p, f, F(-0x1.1ea94ep-2f));
  p = fma(p, f, F(0x1.503882p-2f));
  p = fma(p, f, F(-0x1.99d3a8p-2f));
  p = fma(p, f, F(0x1.00145p-1f));
  p = fma(p, f, F(-0x1.5554fcp-1f));
  p = fma(p, f, F(0x1.ffffd6p-1f));
  p = fma(f * f, p, F(-2.0f) * f);
  return sqrt_rn(fma(e, F(-0x1.62e43p+0f), p));
}

// Quadrant q = 0..3 (mod 4): (c, s), (-s, c), (-c, -s), (s, -c).
template <class F, class U>
FS_HD void turn(U quadrant, F c, F s, F& zc, F& zs) {
  const U swap = U(0u) - (quadrant & U(1u));
  const U cb = bits_of(c), sb = bits_of(s), differ = (cb ^ sb) & swap;
  zc = float_of(cb ^ differ ^ (((quadrant + U(1u)) & U(2u)) << 30));
  zs = float_of(sb ^ differ ^ ((quadrant & U(2u)) << 30));
}

// r cos(2 pi u) and r sin(2 pi u) for u in (0, 1]. The leading r is added last: one rounding less than r * cos.
template <class F, class U>
FS_HD void on_circle(F r, F u, F& zc, F& zs) {
  const F shifted = fma(u, F(4.0f), F(12582912.0f));  // 1.5 * 2^23: rounds 4u to an integer in the low bits
  const U quadrant = bits_of(shifted);
  const F f = fma(shifted + F(-12582912.0f), F(-0.25f), u);  // exact, |f| <= 1/8
  const F t = f * f;
  F c = F(0x1.d47b48p+5f);
  c = fma(c, t, F(-0x1.55b144p+6f));
  c = fma(c, t, F(0x1.03c1aep+6f));
  c = fma(c, t, F(-0x1.3bd3ccp+4f));
  c = fma(r * t, c, r);
  F s = F(-0x1.33504cp+6f);
  s = fma(s, t, F(0x1.4681b2p+6f));
  s = fma(s, t, F(-0x1.4abc26p+5f));
  s = fma(s, t, F(0x1.921fb6p+2f));
  s = s * (r * f);
  turn(quadrant, c, s, zc, zs);
}

// Four words -> four normals.
template <class F, class U>
FS_HD void box_muller(const U r[4], F z[4]) {
  F u[4];
  FS_UNROLL
  for (int i = 0; i < 4; ++i) u[i] = fma(to_float(r[i]), F(0x1p-32f), F(0x1p-33f));
  on_circle<F, U>(radius<F, U>(u[0]), u[1], z[0], z[1]);
  on_circle<F, U>(radius<F, U>(u[2]), u[3], z[2], z[3]);
}

FS_HD void normals_at(uint64_t seed, uint64_t counter, float z[4]) {
  uint32_t r[4];
  philox_at(seed, counter, r);
  box_muller<float, uint32_t>(r, z);
}

// Float64 states: two normals per counter, through libm (equal to rounding, not to the bit, across devices).
FS_HD void box_muller_wide(const uint32_t r[4], double z[2]) {
  const double radius64 = ::sqrt(-2.0 * ::log(uniform_wide(r[0], r[1])));
  const double angle = 6.283185307179586476925 * uniform_wide(r[2], r[3]);
  z[0] = radius64 * ::cos(angle);
  z[1] = radius64 * ::sin(angle);
}

FS_HD void normals_at(uint64_t seed, uint64_t counter, double z[2]) {
  uint32_t r[4];
  philox_at(seed, counter, r);
  box_muller_wide(r, z);
}

// Normals per counter for a compute type.
template <class S>
struct Chunk {
  static constexpr int kSize = sizeof(S) == 8 ? 2 : 4;
};

}  // namespace fs
