// Four lanes of NEON, which every 64-bit ARM processor has: see simd.h.
#pragma once

namespace fs {
namespace FS_ISA {

struct U32 {
  static constexpr int kWidth = 4;
  uint32x4_t v;
  U32() = default;
  FS_HD explicit U32(uint32_t x) : v(vdupq_n_u32(x)) {}
  FS_HD explicit U32(uint32x4_t x) : v(x) {}
};
struct F32 {
  static constexpr int kWidth = 4;
  float32x4_t v;
  F32() = default;
  FS_HD explicit F32(float x) : v(vdupq_n_f32(x)) {}
  FS_HD explicit F32(float32x4_t x) : v(x) {}
};
FS_HD U32 operator^(U32 a, U32 b) { return U32(veorq_u32(a.v, b.v)); }
FS_HD U32 operator&(U32 a, U32 b) { return U32(vandq_u32(a.v, b.v)); }
FS_HD U32 operator+(U32 a, U32 b) { return U32(vaddq_u32(a.v, b.v)); }
FS_HD U32 operator-(U32 a, U32 b) { return U32(vsubq_u32(a.v, b.v)); }
FS_HD U32 operator<<(U32 a, int by) { return U32(vshlq_u32(a.v, vdupq_n_s32(by))); }
FS_HD U32 operator>>(U32 a, int by) { return U32(vshlq_u32(a.v, vdupq_n_s32(-by))); }
FS_HD U32 shift_signed(U32 a, int by) {
  return U32(vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(a.v), vdupq_n_s32(-by))));
}
FS_HD F32 operator+(F32 a, F32 b) { return F32(vaddq_f32(a.v, b.v)); }
FS_HD F32 operator-(F32 a, F32 b) { return F32(vsubq_f32(a.v, b.v)); }
FS_HD F32 operator*(F32 a, F32 b) { return F32(vmulq_f32(a.v, b.v)); }
FS_HD F32 fma(F32 a, F32 b, F32 c) { return F32(vfmaq_f32(c.v, a.v, b.v)); }
FS_HD F32 sqrt_rn(F32 a) { return F32(vsqrtq_f32(a.v)); }
FS_HD U32 bits_of(F32 a) { return U32(vreinterpretq_u32_f32(a.v)); }
FS_HD F32 float_of(U32 a) { return F32(vreinterpretq_f32_u32(a.v)); }
FS_HD U32 whole(F32 a) { return U32(vreinterpretq_u32_s32(vcvtq_s32_f32(a.v))); }
FS_HD F32 to_float(U32 a) { return F32(vcvtq_f32_u32(a.v)); }
FS_HD F32 to_float_signed(U32 a) { return F32(vcvtq_f32_s32(vreinterpretq_s32_u32(a.v))); }
FS_HD void mul_wide(U32 a, uint32_t constant, U32& hi, U32& lo) {
  const uint32x4_t c = vdupq_n_u32(constant);
  const uint32x4_t low = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a.v), vget_low_u32(c)));
  const uint32x4_t high = vreinterpretq_u32_u64(vmull_high_u32(a.v, c));
  hi = U32(vuzp2q_u32(low, high));
  lo = U32(vuzp1q_u32(low, high));
}
FS_HD void turn(U32 quadrant, F32 c, F32 s, F32& zc, F32& zs) {
  const uint32x4_t odd = vtstq_u32(quadrant.v, vdupq_n_u32(1)), sign = vdupq_n_u32(0x80000000u);
  const uint32x4_t top = vshlq_n_u32(quadrant.v, 30), next = vaddq_u32(top, vdupq_n_u32(1u << 30));
  const uint32x4_t a = vreinterpretq_u32_f32(vbslq_f32(odd, s.v, c.v));
  const uint32x4_t b = vreinterpretq_u32_f32(vbslq_f32(odd, c.v, s.v));
  zc = F32(vreinterpretq_f32_u32(veorq_u32(a, vandq_u32(next, sign))));
  zs = F32(vreinterpretq_f32_u32(veorq_u32(b, vandq_u32(top, sign))));
}
FS_HD F32 clamp(F32 y, F32 lo, F32 hi) {
  const float32x4_t below = vbslq_f32(vcgtq_f32(y.v, hi.v), hi.v, y.v);
  return F32(vbslq_f32(vcltq_f32(y.v, lo.v), lo.v, below));
}
FS_HD F32 load_f32(const float* p) { return F32(vld1q_f32(p)); }
FS_HD void store_f32(float* p, F32 x) { vst1q_f32(p, x.v); }
FS_HD F32 load_bf16x(const u16* p) { return F32(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))); }
FS_HD void store_bf16x(u16* p, F32 x) {
  const uint32x4_t u = vreinterpretq_u32_f32(x.v), tie = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint16x4_t r = vshrn_n_u32(vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), tie), 16);
  vst1_u16(p, vbsl_u16(vmovn_u32(vceqq_f32(x.v, x.v)), r, vdup_n_u16(0x7fc0)));
}
FS_HD F32 load_f16x(const u16* p) { return F32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))); }
FS_HD void store_f16x(u16* p, F32 x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x.v))); }
FS_HD U32 chunk_of_lane() {
  constexpr uint32_t kLanes[4] = {0, 1, 2, 3};
  return U32(vld1q_u32(kLanes));
}
FS_HD void store_chunks(float* p, const F32 z[4]) {  // transposes
  const float32x4x4_t all = {{z[0].v, z[1].v, z[2].v, z[3].v}};
  vst4q_f32(p, all);
}
FS_HD void stream_f32(float* p, F32 x) { vst1q_f32(p, x.v); }
FS_HD void add_wide(double* to, F32 x) {
  vst1q_f64(to, vaddq_f64(vld1q_f64(to), vcvt_f64_f32(vget_low_f32(x.v))));
  vst1q_f64(to + 2, vaddq_f64(vld1q_f64(to + 2), vcvt_high_f64_f32(x.v)));
}
FS_HD U32 load_words(const uint32_t* p) { return U32(vld1q_u32(p)); }
FS_HD void store_words(uint32_t* p, U32 x) { vst1q_u32(p, x.v); }
FS_HD U32 load_apart(const uint32_t* p) { return load_words(p); }
FS_HD void store_apart(float* p, F32 x) { store_f32(p, x); }
FS_HD U32 greater(U32 a, U32 b) { return U32(vmaxq_u32(a.v, b.v)); }
FS_HD U32 least_above(U32 least, U32 x, U32 hi) {
  return U32(vbslq_u32(vcgtq_u32(x.v, hi.v), vminq_u32(least.v, x.v), least.v));
}
FS_HD U32 count_at_least(U32 count, U32 x, U32 bound) { return U32(vsubq_u32(count.v, vcgeq_u32(x.v, bound.v))); }
FS_HD int64_t collect(U32 x, U32 lo, U32 hi, uint32_t* to) {
  const uint32x4_t in = vandq_u32(vcgeq_u32(x.v, lo.v), vcleq_u32(x.v, hi.v));
  if (vmaxvq_u32(in) == 0) return 0;
  uint32_t lanes[4], taken[4];
  vst1q_u32(lanes, x.v), vst1q_u32(taken, in);
  int64_t count = 0;
  for (int l = 0; l < 4; ++l) {
    to[count] = lanes[l];
    count += taken[l] & 1;
  }
  return count;
}

}  // namespace FS_ISA
}  // namespace fs
