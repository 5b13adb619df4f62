// Sixteen lanes of AVX-512: see simd.h.
#pragma once

namespace fs {
namespace FS_ISA {

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
FS_HD U32 operator>>(U32 a, int by) { return U32(_mm512_srli_epi32(a.v, by)); }
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
FS_HD U32 whole(F32 a) { return U32(_mm512_cvttps_epi32(a.v)); }
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
// Words p[0..8) and p[16..24); narrower lanes take what fits of the first eight.
FS_HD U32 load_apart(const uint32_t* p) {
  const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)p));
  return U32(_mm512_inserti32x8(low, _mm256_loadu_si256((const __m256i*)(p + 16)), 1));
}
FS_HD void store_apart(float* p, F32 x) {
  _mm256_storeu_ps(p, _mm512_castps512_ps256(x.v));
  _mm256_storeu_ps(p + 16, _mm512_extractf32x8_ps(x.v, 1));
}
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

}  // namespace FS_ISA
}  // namespace fs
