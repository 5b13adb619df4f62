// SIMD lanes with the vocabulary of core/macros.h, so that the templates of csrc/core compile for them unchanged.
// This file is compiled once per instruction set (FS_ISA); everything lives in an inline namespace of its own.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../core/normal.h"
#include "../core/row.h"

namespace fs {
namespace FS_ISA {

using u16 = uint16_t;

FS_HD float load_bf16(u16 x) { return float_of(static_cast<uint32_t>(x) << 16); }
FS_HD u16 store_bf16(float x) {
  const uint32_t u = bits_of(x);
  return (u & 0x7fffffffu) > 0x7f800000u ? u16(0x7fc0) : u16((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
FS_HD float load_f16(u16 x) {
  _Float16 h;
  std::memcpy(&h, &x, 2);
  return static_cast<float>(h);
}
FS_HD u16 store_f16(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  u16 u;
  std::memcpy(&u, &h, 2);
  return u;
}

}  // namespace FS_ISA
}  // namespace fs

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "simd_avx2.h"
#elif defined(__aarch64__)
#include "simd_neon.h"
#else
#include "simd_one.h"
#endif
