// One lane, in plain C++: see simd.h.
#pragma once

namespace fs {
namespace FS_ISA {

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
FS_HD U32 operator>>(U32 a, int by) { return U32(a.v >> by); }
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
FS_HD U32 whole(F32 a) { return U32(fs::whole(a.v)); }
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
FS_HD U32 load_apart(const uint32_t* p) { return load_words(p); }
FS_HD void store_apart(float* p, F32 x) { store_f32(p, x); }
FS_HD U32 greater(U32 a, U32 b) { return U32(a.v > b.v ? a.v : b.v); }
FS_HD U32 least_above(U32 least, U32 x, U32 hi) { return U32(x.v > hi.v && x.v < least.v ? x.v : least.v); }
FS_HD U32 count_at_least(U32 count, U32 x, U32 bound) { return U32(count.v + (x.v >= bound.v)); }
FS_HD int64_t collect(U32 x, U32 lo, U32 hi, uint32_t* to) {
  *to = x.v;
  return x.v >= lo.v && x.v <= hi.v;
}

}  // namespace FS_ISA
}  // namespace fs
