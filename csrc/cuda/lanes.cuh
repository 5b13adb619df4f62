// A few chunks side by side in one thread, with the vocabulary of core/macros.h: the key schedule and the constants of
// the normals are then made once for all of them.
#pragma once
#include "../core/normal.h"

namespace fs::gpu {

template <class T, int N>
struct Lanes {
  T v[N];
  Lanes() = default;
  FS_HD explicit Lanes(T x) {
    FS_UNROLL
    for (int i = 0; i < N; ++i) v[i] = x;
  }
};
template <int N>
using Words32 = Lanes<uint32_t, N>;
template <int N>
using Floats = Lanes<float, N>;

#define FS_LANES(type, name, args, expression)       \
  template <int N>                                   \
  FS_HD Lanes<type, N> name args {                   \
    Lanes<type, N> r;                                \
    FS_UNROLL                                        \
    for (int i = 0; i < N; ++i) r.v[i] = expression; \
    return r;                                        \
  }

// rsqrt and one Newton step are what the compiler emits for sqrt.rn of a normal number; its branch for the others is
// not needed: arguments here are 0 or above 2^-40.
FS_HD float sqrt_of_radius(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaxf(x, 0x1p-60f)));
  const float s = __fmul_rn(x, y);
  return __fmaf_rn(__fmaf_rn(-s, s, x), __fmul_rn(0.5f, y), s);
#else
  return ::sqrtf(x);
#endif
}

FS_HD uint64_t product_of(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint64_t product;  // written as a product of 64-bit numbers, nvcc adds a zero to every high word
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

FS_LANES(uint32_t, operator^, (Words32<N> a, Words32<N> b), a.v[i] ^ b.v[i])
FS_LANES(uint32_t, operator&, (Words32<N> a, Words32<N> b), a.v[i] & b.v[i])
FS_LANES(uint32_t, operator+, (Words32<N> a, Words32<N> b), a.v[i] + b.v[i])
FS_LANES(uint32_t, operator-, (Words32<N> a, Words32<N> b), a.v[i] - b.v[i])
FS_LANES(uint32_t, operator<<, (Words32<N> a, int by), a.v[i] << by)
FS_LANES(uint32_t, shift_signed, (Words32<N> a, int by), fs::shift_signed(a.v[i], by))
FS_LANES(uint32_t, bits_of, (Floats<N> a), fs::bits_of(a.v[i]))
FS_LANES(float, float_of, (Words32<N> a), fs::float_of(a.v[i]))
FS_LANES(float, to_float, (Words32<N> a), fs::to_float(a.v[i]))
FS_LANES(float, to_float_signed, (Words32<N> a), fs::to_float_signed(a.v[i]))
FS_LANES(float, operator+, (Floats<N> a, Floats<N> b), a.v[i] + b.v[i])
FS_LANES(float, operator*, (Floats<N> a, Floats<N> b), a.v[i] * b.v[i])
FS_LANES(float, fma, (Floats<N> a, Floats<N> b, Floats<N> c), fs::fma(a.v[i], b.v[i], c.v[i]))
FS_LANES(float, sqrt_rn, (Floats<N> a), sqrt_of_radius(a.v[i]))
#undef FS_LANES
using fs::bits_of;
using fs::float_of;

template <int N>
FS_HD void mul_wide(Words32<N> a, uint32_t constant, Words32<N>& hi, Words32<N>& lo) {
  FS_UNROLL
  for (int i = 0; i < N; ++i) {
    const uint64_t product = product_of(a.v[i], constant);
    hi.v[i] = static_cast<uint32_t>(product >> 32);
    lo.v[i] = static_cast<uint32_t>(product);
  }
}

// Normals of N counters in a row: z[k].v[i] is normal k of counter + i.
template <int N>
FS_HD void normals_in_a_row(uint64_t seed, uint64_t counter, Floats<N> z[4]) {
  Words32<N> low, high, r[4];
  FS_UNROLL
  for (int i = 0; i < N; ++i) {
    low.v[i] = static_cast<uint32_t>(counter + i);
    high.v[i] = static_cast<uint32_t>((counter + i) >> 32);
  }
  philox(low, high, seed, r);
  box_muller<Floats<N>, Words32<N>>(r, z);
}

}  // namespace fs::gpu
