// Host and device: what the core needs of a compiler, and the few operations that must round alike everywhere.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FS_HD __host__ __device__ __forceinline__
#else
#define FS_HD inline __attribute__((always_inline))
#endif

#if defined(__CUDACC__) || defined(__clang__)
#define FS_UNROLL _Pragma("unroll")
#else
#define FS_UNROLL _Pragma("GCC unroll 16")
#endif

namespace fs {

// The primitives below are the whole vocabulary of the noise arithmetic. csrc/cpu/simd.h repeats them for SIMD lanes.

FS_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FS_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }

FS_HD float sqrt_rn(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return ::sqrtf(x);
#endif
}

FS_HD uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
#endif
}

FS_HD float float_of(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float x;
  std::memcpy(&x, &u, 4);
  return x;
#endif
}

// 32 x 32 -> 64 bit product with a constant.
FS_HD void mul_wide(uint32_t a, uint32_t constant, uint32_t& hi, uint32_t& lo) {
  const uint64_t product = static_cast<uint64_t>(a) * constant;
  hi = static_cast<uint32_t>(product >> 32);
  lo = static_cast<uint32_t>(product);
}

// Integer to float, round to nearest even; float to signed integer, towards zero; the arithmetic shift of a signed
// word.
FS_HD float to_float(uint32_t x) { return static_cast<float>(x); }
FS_HD float to_float_signed(uint32_t x) { return static_cast<float>(static_cast<int32_t>(x)); }
FS_HD uint32_t whole(float x) { return static_cast<uint32_t>(static_cast<int32_t>(x)); }
FS_HD uint32_t shift_signed(uint32_t x, int by) { return static_cast<uint32_t>(static_cast<int32_t>(x) >> by); }

}  // namespace fs
