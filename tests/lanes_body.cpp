// Every operation of csrc/cpu/simd*.h, runs of normals and the loop of `update`, on given words: what one instruction
// set makes of them, to be compared with another. Plain C++ without torch, so that it can be built for any processor.
#include <initializer_list>

#include "cpu/row_loop.h"
#include "cpu/torch_stream.h"
#include "cpu/update.h"

#ifndef FS_ISA
#define FS_ISA isa_base
#endif

namespace fs {
namespace FS_ISA {
namespace {

struct Out {
  uint32_t* p;
  void word(uint32_t x) { *p++ = x; }
  void lanes(U32 x) {
    store_words(p, x);
    p += U32::kWidth;
  }
  void lanes(F32 x) { lanes(bits_of(x)); }
};

// In blocks of 64 words, so that the order of results does not depend on the number of lanes.
template <class F>
void each(const uint32_t* words, Out& out, const F& f) {
  for (int i = 0; i < 64; i += U32::kWidth) out.lanes(f(load_words(words + i)));
}

void primitives(const uint32_t* words, Out& out) {
  const auto small = [](U32 x) { return to_float_signed(x) * F32(0x1p-20f); };  // about -2048..2048, never a NaN
  each(words, out, [](U32 x) { return x ^ U32(0x12345678u); });
  each(words, out, [](U32 x) { return (x & U32(0xff00ff00u)) + U32(0x9E3779B9u) - (x << 7); });
  for (int by : {1, 9, 23, 31}) each(words, out, [=](U32 x) { return shift_signed(x, by); });
  for (int by : {1, 11, 23, 31}) each(words, out, [=](U32 x) { return x >> by; });
  each(words, out, [](U32 x) { return to_float(x); });
  each(words, out, [&](U32 x) { return whole(small(x)); });
  each(words, out, [&](U32 x) { return fma(small(x), small(x ^ U32(77u)), small(x << 3)); });
  each(words, out, [&](U32 x) { return small(x) * small(x << 5) + small(x << 2) - F32(0.3f); });
  each(words, out, [](U32 x) { return sqrt_rn(to_float(x)); });
  for (uint32_t m : {0xD2511F53u, 0xCD9E8D57u}) {
    U32 hi, lo;
    each(words, out, [&](U32 x) { return mul_wide(x, m, hi, lo), hi; });
    each(words, out, [&](U32 x) { return mul_wide(x, m, hi, lo), lo; });
  }
  F32 zc, zs;
  each(words, out, [&](U32 x) { return turn(x, small(x), small(x << 9), zc, zs), zc; });
  each(words, out, [&](U32 x) { return turn(x, small(x), small(x << 9), zc, zs), zs; });
  each(words, out, [&](U32 x) { return clamp(small(x), F32(-100.0f), F32(250.0f)); });
  each(words, out, [](U32 x) { return clamp(float_of(x), F32(-1.0f), F32(1.0f)); });  // NaN stays NaN
  alignas(64) u16 halves[64];
  for (int i = 0; i < 64; i += F32::kWidth)
    store_bf16x(halves + i, load_f32(reinterpret_cast<const float*>(words) + i));
  for (u16 x : halves) out.word(x);
  for (int i = 0; i < 64; i += F32::kWidth) out.lanes(load_bf16x(halves + i));
  for (int i = 0; i < 64; i += F32::kWidth) store_f16x(halves + i, small(load_words(words + i)));
  for (u16 x : halves) out.word(x);
  for (int i = 0; i < 64; i += F32::kWidth) out.lanes(load_f16x(halves + i));
}

// Words below 2^31, as the search of `threshold` has them. Sums over lanes are made so that their order does not show.
void search(const uint32_t* words, Out& out) {
  const U32 half(0x7fffffffu), lo(0x20000000u), hi(0x50000000u);
  U32 most(0u), least(0x7fffffffu), count(0u);
  uint32_t kept[64 + 16], n = 0;
  for (int i = 0; i < 64; i += U32::kWidth) {
    const U32 x = load_words(words + i) & half;
    most = greater(most, x), least = least_above(least, x, hi), count = count_at_least(count, x, lo);
    n += static_cast<uint32_t>(collect(x, lo, hi, kept + n));
  }
  uint32_t lanes[3][16], found[3] = {0, 0x7fffffffu, 0};
  store_words(lanes[0], most), store_words(lanes[1], least), store_words(lanes[2], count);
  for (int l = 0; l < U32::kWidth; ++l) {
    found[0] = lanes[0][l] > found[0] ? lanes[0][l] : found[0];
    found[1] = lanes[1][l] < found[1] ? lanes[1][l] : found[1];
    found[2] += lanes[2][l];
  }
  for (uint32_t x : found) out.word(x);
  out.word(n);
  for (uint32_t i = 0; i < n; ++i) out.word(kept[i]);
  double sums[64] = {};
  for (int i = 0; i < 64; i += F32::kWidth) add_wide(sums + i, to_float(load_words(words + i)));
  for (double x : sums) {
    uint64_t u;
    std::memcpy(&u, &x, 8);
    out.word(static_cast<uint32_t>(u)), out.word(static_cast<uint32_t>(u >> 32));
  }
}

void noise(const uint32_t* words, Out& out) {
  alignas(64) static float z[1003 + 64];
  const uint64_t seed = words[0] | static_cast<uint64_t>(words[1]) << 32;
  for (uint64_t counter : {uint64_t(5), uint64_t(0xffffffff) - 100})  // the low word wraps in the second
    for (int64_t n : {4, 100, 1003}) {
      normals(seed, counter, n, Nothing{}, Nothing{}, z);
      for (int64_t i = 0; i < n; ++i) out.word(fs::bits_of(z[i]));
    }
}

// Normals of torch's stream, of a state made of the words, in one go and in two parts; and the state that is left.
void stream(const uint32_t* words, Out& out) {
  static Mersenne from, to;
  for (int i = 0; i < kMersenne; ++i) from.words[i] = words[i % 64] * (2u * i + 1) + i;
  alignas(64) static uint16_t made[2][2 * 2017];
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    from.left = words[5] % (kMersenne + 1);
    for (int parts = 1; parts <= 2; ++parts) {
      const StreamArgs a{&from, &to, made[parts - 1], type, 2017};
      for (int64_t k = 0; k < parts; ++k)
        stream_blocks(a, stream_block_count(a) * k / parts, stream_block_count(a) * (k + 1) / parts);
    }
    for (int64_t i = 0; i < 2017 * size_of(type) / 2; ++i) out.word(made[0][i] << 16 | made[1][i]);
  }
  for (int i = 0; i < kMersenne; ++i) out.word(to.words[i]);
  out.word(static_cast<uint32_t>(to.left));
}

// y = 0.75 x - 0.5 e + 0.25 xi and D = clamp(x - e), of a sample with 999 elements, by the loop itself.
void update(const uint32_t* words, Out& out, DType type) {
  constexpr int kN = 999;
  alignas(64) static float x[kN], e[kN], y[kN], d[kN];
  alignas(64) static u16 e16[kN], y16[kN];
  for (int i = 0; i < kN; ++i) {
    x[i] = fs::to_float_signed(words[i % 64] * (2u * i + 1)) * 0x1p-30f;
    e[i] = fs::to_float_signed(words[(i + 7) % 64] * (2u * i + 3)) * 0x1p-30f;
    e16[i] = type == DType::kBF16 ? store_bf16(e[i]) : store_f16(e[i]);
  }
  double row[kColumns] = {};
  row[0] = 1.0, row[1] = 0.75, row[4] = -1.0, row[5] = -0.5;                  // P_0, W_00, P_1, W_01
  row[32] = -0.4, row[34] = 1.0, row[36] = 0.6, row[37] = 0.25, row[44] = 3;  // lo, w_1, hi, G_00, draw_0
  const int64_t step = 0;
  const uint64_t key[2] = {words[3], words[4]};
  UpdateArgs a = {};
  const auto operand = [](void* p, DType t) {
    Operand o = {};
    o.data = p, o.batch_stride = kN, o.stride[0] = 1, o.dtype = t;
    return o;
  };
  const bool half = type != DType::kF32;
  a.terms[0] = operand(x, DType::kF32);
  a.terms[1] = half ? operand(e16, type) : operand(e, type);
  a.outs[0] = half ? operand(y16, type) : operand(y, type);
  a.outs[1] = operand(d, DType::kF32);
  a.n_terms = 2, a.n_outs = 2, a.n_noises = 2, a.unit = true, a.ndim = 1, a.size[0] = kN, a.batch = 1, a.numel = kN;
  a.chunks = (kN + 3) / 4, a.table = row, a.rows = 1, a.step = &step, a.key = key;
  update_tiles(a, 0, update_tile_count(a));
  for (int i = 0; i < kN; ++i) out.word(half ? y16[i] : fs::bits_of(y[i])), out.word(fs::bits_of(d[i]));
}

}  // namespace
}  // namespace FS_ISA
}  // namespace fs

// 64 words in; returns how many were written.
extern "C" __attribute__((visibility("default"), used)) int64_t lanes(const uint32_t* words, uint32_t* to) {
  using namespace fs;
  FS_ISA::Out out{to};
  FS_ISA::primitives(words, out);
  FS_ISA::search(words, out);
  FS_ISA::noise(words, out);
  FS_ISA::stream(words, out);
  for (DType type : {DType::kF32, DType::kBF16, DType::kF16}) FS_ISA::update(words, out, type);
  return out.p - to;
}

#if defined(FS_PROGRAM)  // without a C library, whose building takes a minute
extern "C" {
void* memcpy(void* to, const void* from, size_t n) {
  for (size_t i = 0; i < n; ++i) static_cast<volatile char*>(to)[i] = static_cast<const char*>(from)[i];
  return to;
}
void* memset(void* to, int value, size_t n) {
  for (size_t i = 0; i < n; ++i) static_cast<volatile char*>(to)[i] = static_cast<char>(value);
  return to;
}
double log(double) { __builtin_trap(); }  // of the normals of float64 states
double cos(double) { __builtin_trap(); }
double sin(double) { __builtin_trap(); }
void _start() {}
}
#endif
