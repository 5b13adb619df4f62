// SIMD lanes with the vocabulary of core/macros.h, so that the templates of csrc/core compile for them unchanged.
// This file is compiled once per instruction set (FS_ISA); everything lives in an inline namespace of its own.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
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

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct U32 {
  static constexpr int kWidth = 16;
  __m512i v;
  U32() = default;
  FS_HD explicit U32(uint32_t x) : v(_mm512_set1_epi32(static_cast<int>(x))) {}
  FS_HD explicit U32(__m512i x) : v(x) {}
};
struct F32 {
  static constexpr int kWidth = 16;
  __m512 v;
  F32() = default;
  FS_HD explicit F32(float x) : v(_mm512_set1_ps(x)) {}
  FS_HD explicit F32(__m512 x) : v(x) {}
};
FS_HD U32 operator^(U32 a, U32 b) { return U32(_mm512_xor_si512(a.v, b.v)); }
FS_HD U32 operator&(U32 a, U32 b) { return U32(_mm512_and_si512(a.v, b.v)); }
FS_HD U32 operator+(U32 a, U32 b) { return U32(_mm512_add_epi32(a.v, b.v)); }
FS_HD U32 operator-(U32 a, U32 b) { return U32(_mm512_sub_epi32(a.v, b.v)); }
FS_HD U32 operator<<(U32 a, int by) { return U32(_mm512_slli_epi32(a.v, by)); }
FS_HD U32 shift_signed(U32 a, int by) { return U32(_mm512_srai_epi32(a.v, by)); }
FS_HD F32 operator+(F32 a, F32 b) { return F32(_mm512_add_ps(a.v, b.v)); }
FS_HD F32 operator-(F32 a, F32 b) { return F32(_mm512_sub_ps(a.v, b.v)); }
FS_HD F32 operator*(F32 a, F32 b) { return F32(_mm512_mul_ps(a.v, b.v)); }
FS_HD F32 fma(F32 a, F32 b, F32 c) { return F32(_mm512_fmadd_ps(a.v, b.v, c.v)); }
FS_HD F32 sqrt_rn(F32 a) { return F32(_mm512_sqrt_ps(a.v)); }
FS_HD U32 bits_of(F32 a) { return U32(_mm512_castps_si512(a.v)); }
FS_HD F32 float_of(U32 a) { return F32(_mm512_castsi512_ps(a.v)); }
FS_HD F32 to_float(U32 a) { return F32(_mm512_cvtepu32_ps(a.v)); }
FS_HD F32 to_float_signed(U32 a) { return F32(_mm512_cvtepi32_ps(a.v)); }
constexpr auto kOddDown = static_cast<_MM_PERM_ENUM>(0xF5), kEvenUp = static_cast<_MM_PERM_ENUM>(0xA0);
FS_HD void mul_wide(U32 a, uint32_t constant, U32& hi, U32& lo) {
  const __m512i c = _mm512_set1_epi64(constant);
  const __m512i even = _mm512_mul_epu32(a.v, c), odd = _mm512_mul_epu32(_mm512_shuffle_epi32(a.v, kOddDown), c);
  hi = U32(_mm512_mask_shuffle_epi32(odd, 0x5555, even, kOddDown));  // shuffles, because shifts share the port of mul
  lo = U32(_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, kEvenUp));
}
// core/normal.h's turn() in 7 instructions instead of 10.
FS_HD void turn(U32 quadrant, F32 c, F32 s, F32& zc, F32& zs) {
  const __mmask16 odd = _mm512_test_epi32_mask(quadrant.v, _mm512_set1_epi32(1));
  const __m512i sign = _mm512_set1_epi32(INT32_MIN), top = _mm512_slli_epi32(quadrant.v, 30);
  const __m512i next = _mm512_add_epi32(top, _mm512_set1_epi32(1 << 30));
  const __m512i a = _mm512_castps_si512(_mm512_mask_blend_ps(odd, c.v, s.v));
  const __m512i b = _mm512_castps_si512(_mm512_mask_blend_ps(odd, s.v, c.v));
  zc = F32(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(a, next, sign, 0x78)));  // a ^ (next & sign)
  zs = F32(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(b, top, sign, 0x78)));
}
FS_HD F32 clamp(F32 y, F32 lo, F32 hi) {
  const __m512 below = _mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(y.v, hi.v, _CMP_GT_OQ), hi.v);
  return F32(_mm512_mask_mov_ps(below, _mm512_cmp_ps_mask(y.v, lo.v, _CMP_LT_OQ), lo.v));
}
FS_HD F32 load_f32(const float* p) { return F32(_mm512_loadu_ps(p)); }
FS_HD void store_f32(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
FS_HD F32 load_bf16x(const u16* p) {
  return F32(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16)));
}
FS_HD void store_bf16x(u16* p, F32 x) {
  const __m512i u = _mm512_castps_si512(x.v), one = _mm512_set1_epi32(1);
  const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), tie), 16);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(r));
}
FS_HD F32 load_f16x(const u16* p) { return F32(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))); }
FS_HD void store_f16x(u16* p, F32 x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Lane 4q + t counts chunk 4t + q, so that the transpose inside 128-bit lanes puts chunks in order.
FS_HD U32 chunk_of_lane() { return U32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)); }
FS_HD void store_chunks(float* p, const F32 z[4]) {
  const __m512 a = _mm512_unpacklo_ps(z[0].v, z[1].v), b = _mm512_unpackhi_ps(z[0].v, z[1].v);
  const __m512 c = _mm512_unpacklo_ps(z[2].v, z[3].v), d = _mm512_unpackhi_ps(z[2].v, z[3].v);
  _mm512_storeu_ps(p, _mm512_shuffle_ps(a, c, 0x44));
  _mm512_storeu_ps(p + 16, _mm512_shuffle_ps(a, c, 0xEE));
  _mm512_storeu_ps(p + 32, _mm512_shuffle_ps(b, d, 0x44));
  _mm512_storeu_ps(p + 48, _mm512_shuffle_ps(b, d, 0xEE));
}
FS_HD void stream_f32(float* p, F32 x) { _mm512_stream_ps(p, x.v); }
// Adds the lanes to as many float64 numbers.
FS_HD void add_wide(double* to, F32 x) {
  const __m256 low = _mm512_castps512_ps256(x.v), high = _mm512_extractf32x8_ps(x.v, 1);
  _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), _mm512_cvtps_pd(low)));
  _mm512_storeu_pd(to + 8, _mm512_add_pd(_mm512_loadu_pd(to + 8), _mm512_cvtps_pd(high)));
}
// Words below 2^31: the greater of two; the least of those above `hi`; counts of those at least `bound`; and those of
// [lo, hi] stored side by side (up to a whole vector is written), with their number.
FS_HD U32 load_words(const uint32_t* p) { return U32(_mm512_loadu_si512(p)); }
FS_HD void store_words(uint32_t* p, U32 x) { _mm512_storeu_si512(p, x.v); }
FS_HD U32 greater(U32 a, U32 b) { return U32(_mm512_max_epi32(a.v, b.v)); }
FS_HD U32 least_above(U32 least, U32 x, U32 hi) {
  return U32(_mm512_mask_min_epi32(least.v, _mm512_cmpgt_epi32_mask(x.v, hi.v), least.v, x.v));
}
FS_HD U32 count_at_least(U32 count, U32 x, U32 bound) {
  const __mmask16 in = _mm512_cmpge_epi32_mask(x.v, bound.v);
  return U32(_mm512_mask_sub_epi32(count.v, in, count.v, _mm512_set1_epi32(-1)));
}
FS_HD int64_t collect(U32 x, U32 lo, U32 hi, uint32_t* to) {
  const __mmask16 in = _mm512_mask_cmple_epi32_mask(_mm512_cmpge_epi32_mask(x.v, lo.v), x.v, hi.v);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(in, x.v));
  return __builtin_popcount(in);
}

#elif defined(__AVX2__) && defined(__FMA__)

struct U32 {
  static constexpr int kWidth = 8;
  __m256i v;
  U32() = default;
  FS_HD explicit U32(uint32_t x) : v(_mm256_set1_epi32(static_cast<int>(x))) {}
  FS_HD explicit U32(__m256i x) : v(x) {}
};
struct F32 {
  static constexpr int kWidth = 8;
  __m256 v;
  F32() = default;
  FS_HD explicit F32(float x) : v(_mm256_set1_ps(x)) {}
  FS_HD explicit F32(__m256 x) : v(x) {}
};
FS_HD U32 operator^(U32 a, U32 b) { return U32(_mm256_xor_si256(a.v, b.v)); }
FS_HD U32 operator&(U32 a, U32 b) { return U32(_mm256_and_si256(a.v, b.v)); }
FS_HD U32 operator+(U32 a, U32 b) { return U32(_mm256_add_epi32(a.v, b.v)); }
FS_HD U32 operator-(U32 a, U32 b) { return U32(_mm256_sub_epi32(a.v, b.v)); }
FS_HD U32 operator<<(U32 a, int by) { return U32(_mm256_slli_epi32(a.v, by)); }
FS_HD U32 shift_signed(U32 a, int by) { return U32(_mm256_srai_epi32(a.v, by)); }
FS_HD F32 operator+(F32 a, F32 b) { return F32(_mm256_add_ps(a.v, b.v)); }
FS_HD F32 operator-(F32 a, F32 b) { return F32(_mm256_sub_ps(a.v, b.v)); }
FS_HD F32 operator*(F32 a, F32 b) { return F32(_mm256_mul_ps(a.v, b.v)); }
FS_HD F32 fma(F32 a, F32 b, F32 c) { return F32(_mm256_fmadd_ps(a.v, b.v, c.v)); }
FS_HD F32 sqrt_rn(F32 a) { return F32(_mm256_sqrt_ps(a.v)); }
FS_HD U32 bits_of(F32 a) { return U32(_mm256_castps_si256(a.v)); }
FS_HD F32 float_of(U32 a) { return F32(_mm256_castsi256_ps(a.v)); }
FS_HD F32 to_float_signed(U32 a) { return F32(_mm256_cvtepi32_ps(a.v)); }
FS_HD F32 to_float(U32 a) {  // halves are exact, the fma rounds once
  const __m256 hi = _mm256_cvtepi32_ps(_mm256_srli_epi32(a.v, 16));
  const __m256 lo = _mm256_cvtepi32_ps(_mm256_and_si256(a.v, _mm256_set1_epi32(0xffff)));
  return F32(_mm256_fmadd_ps(hi, _mm256_set1_ps(65536.0f), lo));
}
FS_HD void mul_wide(U32 a, uint32_t constant, U32& hi, U32& lo) {
  const __m256i c = _mm256_set1_epi64x(constant);
  const __m256i even = _mm256_mul_epu32(a.v, c), odd = _mm256_mul_epu32(_mm256_shuffle_epi32(a.v, 0xF5), c);
  hi = U32(_mm256_blend_epi32(_mm256_shuffle_epi32(even, 0xF5), odd, 0xAA));
  lo = U32(_mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xA0), 0xAA));
}
FS_HD F32 clamp(F32 y, F32 lo, F32 hi) {
  const __m256 below = _mm256_blendv_ps(y.v, hi.v, _mm256_cmp_ps(y.v, hi.v, _CMP_GT_OQ));
  return F32(_mm256_blendv_ps(below, lo.v, _mm256_cmp_ps(y.v, lo.v, _CMP_LT_OQ)));
}
FS_HD F32 load_f32(const float* p) { return F32(_mm256_loadu_ps(p)); }
FS_HD void store_f32(float* p, F32 x) { _mm256_storeu_ps(p, x.v); }
FS_HD F32 load_bf16x(const u16* p) {
  return F32(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16)));
}
FS_HD void store_bf16x(u16* p, F32 x) {
  const __m256i u = _mm256_castps_si256(x.v);
  const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), tie), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
  r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(r));
}
FS_HD F32 load_f16x(const u16* p) { return F32(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))); }
FS_HD void store_f16x(u16* p, F32 x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FS_HD U32 chunk_of_lane() { return U32(_mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)); }
FS_HD void store_chunks(float* p, const F32 z[4]) {
  const __m256 a = _mm256_unpacklo_ps(z[0].v, z[1].v), b = _mm256_unpackhi_ps(z[0].v, z[1].v);
  const __m256 c = _mm256_unpacklo_ps(z[2].v, z[3].v), d = _mm256_unpackhi_ps(z[2].v, z[3].v);
  _mm256_storeu_ps(p, _mm256_shuffle_ps(a, c, 0x44));
  _mm256_storeu_ps(p + 8, _mm256_shuffle_ps(a, c, 0xEE));
  _mm256_storeu_ps(p + 16, _mm256_shuffle_ps(b, d, 0x44));
  _mm256_storeu_ps(p + 24, _mm256_shuffle_ps(b, d, 0xEE));
}
FS_HD void stream_f32(float* p, F32 x) { _mm256_stream_ps(p, x.v); }
FS_HD void add_wide(double* to, F32 x) {
  const __m128 low = _mm256_castps256_ps128(x.v), high = _mm256_extractf128_ps(x.v, 1);
  _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), _mm256_cvtps_pd(low)));
  _mm256_storeu_pd(to + 4, _mm256_add_pd(_mm256_loadu_pd(to + 4), _mm256_cvtps_pd(high)));
}
FS_HD U32 load_words(const uint32_t* p) { return U32(_mm256_loadu_si256((const __m256i*)p)); }
FS_HD void store_words(uint32_t* p, U32 x) { _mm256_storeu_si256((__m256i*)p, x.v); }
FS_HD U32 greater(U32 a, U32 b) { return U32(_mm256_max_epi32(a.v, b.v)); }
FS_HD U32 least_above(U32 least, U32 x, U32 hi) {
  const __m256i in = _mm256_cmpgt_epi32(x.v, hi.v), none = _mm256_set1_epi32(INT32_MAX);
  return U32(_mm256_min_epi32(least.v, _mm256_blendv_epi8(none, x.v, in)));
}
FS_HD U32 count_at_least(U32 count, U32 x, U32 bound) {
  const __m256i below = _mm256_cmpgt_epi32(bound.v, x.v), one = _mm256_set1_epi32(1);
  return U32(_mm256_add_epi32(count.v, _mm256_add_epi32(below, one)));
}
FS_HD int64_t collect(U32 x, U32 lo, U32 hi, uint32_t* to) {
  const __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(lo.v, x.v), _mm256_cmpgt_epi32(x.v, hi.v));
  unsigned in = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(out))) & 0xffu;
  if (in == 0) return 0;
  uint32_t lanes[8];
  _mm256_storeu_si256((__m256i*)lanes, x.v);
  int64_t count = 0;
  for (; in; in &= in - 1) to[count++] = lanes[__builtin_ctz(in)];
  return count;
}

#else  // one lane; compilers for NEON vectorise what they can

struct U32 {
  static constexpr int kWidth = 1;
  uint32_t v;
  U32() = default;
  FS_HD explicit U32(uint32_t x) : v(x) {}
};
struct F32 {
  static constexpr int kWidth = 1;
  float v;
  F32() = default;
  FS_HD explicit F32(float x) : v(x) {}
};
FS_HD U32 operator^(U32 a, U32 b) { return U32(a.v ^ b.v); }
FS_HD U32 operator&(U32 a, U32 b) { return U32(a.v & b.v); }
FS_HD U32 operator+(U32 a, U32 b) { return U32(a.v + b.v); }
FS_HD U32 operator-(U32 a, U32 b) { return U32(a.v - b.v); }
FS_HD U32 operator<<(U32 a, int by) { return U32(a.v << by); }
FS_HD U32 shift_signed(U32 a, int by) { return U32(fs::shift_signed(a.v, by)); }
FS_HD F32 operator+(F32 a, F32 b) { return F32(a.v + b.v); }
FS_HD F32 operator-(F32 a, F32 b) { return F32(a.v - b.v); }
FS_HD F32 operator*(F32 a, F32 b) { return F32(a.v * b.v); }
FS_HD F32 fma(F32 a, F32 b, F32 c) { return F32(fs::fma(a.v, b.v, c.v)); }
FS_HD F32 sqrt_rn(F32 a) { return F32(fs::sqrt_rn(a.v)); }
FS_HD U32 bits_of(F32 a) { return U32(fs::bits_of(a.v)); }
FS_HD F32 float_of(U32 a) { return F32(fs::float_of(a.v)); }
FS_HD F32 to_float(U32 a) { return F32(fs::to_float(a.v)); }
FS_HD F32 to_float_signed(U32 a) { return F32(fs::to_float_signed(a.v)); }
FS_HD void mul_wide(U32 a, uint32_t constant, U32& hi, U32& lo) { fs::mul_wide(a.v, constant, hi.v, lo.v); }
FS_HD F32 clamp(F32 y, F32 lo, F32 hi) { return F32(fs::clamp<float>(y.v, lo.v, hi.v)); }
FS_HD F32 load_f32(const float* p) { return F32(*p); }
FS_HD void store_f32(float* p, F32 x) { *p = x.v; }
FS_HD F32 load_bf16x(const u16* p) { return F32(load_bf16(*p)); }
FS_HD void store_bf16x(u16* p, F32 x) { *p = store_bf16(x.v); }
FS_HD F32 load_f16x(const u16* p) { return F32(load_f16(*p)); }
FS_HD void store_f16x(u16* p, F32 x) { *p = store_f16(x.v); }
FS_HD U32 chunk_of_lane() { return U32(0u); }
FS_HD void store_chunks(float* p, const F32 z[4]) {
  for (int k = 0; k < 4; ++k) p[k] = z[k].v;
}
FS_HD void stream_f32(float* p, F32 x) { *p = x.v; }
FS_HD void add_wide(double* to, F32 x) { *to += x.v; }
FS_HD U32 load_words(const uint32_t* p) { return U32(*p); }
FS_HD void store_words(uint32_t* p, U32 x) { *p = x.v; }
FS_HD U32 greater(U32 a, U32 b) { return U32(a.v > b.v ? a.v : b.v); }
FS_HD U32 least_above(U32 least, U32 x, U32 hi) { return U32(x.v > hi.v && x.v < least.v ? x.v : least.v); }
FS_HD U32 count_at_least(U32 count, U32 x, U32 bound) { return U32(count.v + (x.v >= bound.v)); }
FS_HD int64_t collect(U32 x, U32 lo, U32 hi, uint32_t* to) {
  *to = x.v;
  return x.v >= lo.v && x.v <= hi.v;
}

#endif

}  // namespace FS_ISA
}  // namespace fs
