// The normals of `torch.randn` on a CPU, to the bit: Box-Muller (1958) of 24 bits of a word each.
// The polynomials and the order of operations are those of the Cephes library (Moshier) as torch's AVX2 kernel runs
// them, each fma where its compiler puts one. Whether this torch is such a one is asked at run time, by comparing.
// For noise that nobody else has drawn use core/normal.h, which is more exact.
#pragma once
#include "macros.h"

namespace fs {

// log u for u in [2^-24, 1].
template <class F, class U>
FS_HD F log_cephes(F u) {
  const U bits = bits_of(u);
  const F half = float_of((bits & U(0x007fffffu)) ^ U(0x3f000000u));  // u = half 2^e, half in [1/2, 1)
  const U below = shift_signed(bits_of(half) - U(0x3f3504f3u), 31);   // all ones if half < sqrt(1/2)
  const F e = to_float_signed((bits >> 23) - U(126u) + below);
  const F x = half + F(-1.0f) + float_of(bits_of(half) & below);
  const F z = x * x;
  F y = F(7.0376836292e-2f);
  y = fma(y, x, F(-1.1514610310e-1f));
  y = fma(y, x, F(1.1676998740e-1f));
  y = fma(y, x, F(-1.2420140846e-1f));
  y = fma(y, x, F(1.4249322787e-1f));
  y = fma(y, x, F(-1.6668057665e-1f));
  y = fma(y, x, F(2.0000714765e-1f));
  y = fma(y, x, F(-2.4999993993e-1f));
  y = fma(y, x, F(3.3333331174e-1f));
  y = fma(y * x, z, e * F(-2.12194440e-4f));
  y = fma(z, F(-0.5f), y);
  return fma(e, F(0.693359375f), x + y);
}

// Cosine and sine of theta in [0, 2 pi].
template <class F, class U>
FS_HD void circle_cephes(F theta, F& cosine, F& sine) {
  const U j = (whole(theta * F(1.27323954473516f)) + U(1u)) & U(~1u);  // even multiples of pi / 4
  const F y = to_float_signed(j);
  F x = fma(y, F(-0.78515625f), theta);
  x = fma(y, F(-2.4187564849853515625e-4f), x);
  x = fma(y, F(-3.77489497744594108e-8f), x);
  const F z = x * x;
  F c = F(2.443315711809948e-5f);
  c = fma(c, z, F(-1.388731625493765e-3f));
  c = fma(c, z, F(4.166664568298827e-2f));
  c = fma(c * z, z, z * F(-0.5f)) + F(1.0f);
  F s = F(-1.9515295891e-4f);
  s = fma(s, z, F(8.3321608736e-3f));
  s = fma(s, z, F(-1.6666654611e-1f));
  s = fma(s * z, x, x);
  const U odd = U(0u) - ((j >> 1) & U(1u)), differ = (bits_of(c) ^ bits_of(s)) & odd;  // the two change places
  cosine = float_of(bits_of(c) ^ differ ^ (((j + U(2u)) & U(4u)) << 29));
  sine = float_of(bits_of(s) ^ differ ^ ((j & U(4u)) << 29));
}

// Two words -> two normals.
template <class F, class U>
FS_HD void torch_normals(U a, U b, F& first, F& second) {
  const F u = to_float_signed(U(0x01000000u) - (a & U(0x00ffffffu))) * F(0x1p-24f);
  const F angle = to_float_signed(b & U(0x00ffffffu)) * F(0x1p-24f) * F(6.283185307179586f);
  const F r = sqrt_rn(log_cephes<F, U>(u) * F(-2.0f));
  F c, s;
  circle_cephes<F, U>(angle, c, s);
  first = r * c + F(0.0f);  // -0 becomes 0
  second = r * s + F(0.0f);
}

}  // namespace fs
