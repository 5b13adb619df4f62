// Eight lanes of AVX2: see simd.h.
#pragma once

namespace fs {
namespace FS_ISA {

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
FS_HD U32 operator>>(U32 a, int by) { return U32(_mm256_srli_epi32(a.v, by)); }
FS_HD U32 shift_signed(U32 a, int by) { return U32(_mm256_srai_epi32(a.v, by)); }
FS_HD F32 operator+(F32 a, F32 b) { return F32(_mm256_add_ps(a.v, b.v)); }
FS_HD F32 operator-(F32 a, F32 b) { return F32(_mm256_sub_ps(a.v, b.v)); }
FS_HD F32 operator*(F32 a, F32 b) { return F32(_mm256_mul_ps(a.v, b.v)); }
FS_HD F32 fma(F32 a, F32 b, F32 c) { return F32(_mm256_fmadd_ps(a.v, b.v, c.v)); }
FS_HD F32 sqrt_rn(F32 a) { return F32(_mm256_sqrt_ps(a.v)); }
FS_HD U32 bits_of(F32 a) { return U32(_mm256_castps_si256(a.v)); }
FS_HD F32 float_of(U32 a) { return F32(_mm256_castsi256_ps(a.v)); }
FS_HD F32 to_float_signed(U32 a) { return F32(_mm256_cvtepi32_ps(a.v)); }
FS_HD U32 whole(F32 a) { return U32(_mm256_cvttps_epi32(a.v)); }
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
FS_HD U32 load_apart(const uint32_t* p) { return load_words(p); }
FS_HD void store_apart(float* p, F32 x) { store_f32(p, x); }
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

}  // namespace FS_ISA
}  // namespace fs
