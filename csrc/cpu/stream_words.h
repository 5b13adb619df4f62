// A place in the stream of torch's CPU generator, and the normals from there on, by lanes. Compiled once per
// instruction set (FS_ISA).
#pragma once
#include "../core/torch_normal.h"
#include "simd.h"
#include "torch_stream.h"

namespace fs {
namespace FS_ISA {
namespace {

class Stream {
 public:
  static constexpr int64_t kPiece = 1024;  // words at a time: they and their normals stay in the first cache

  explicit Stream(const Mersenne& from) : m_(from) {}

  const Mersenne& state() const { return m_; }

  // Stepping over a word takes a sixth of the time that making a normal of it does.
  void skip(int64_t n) {
    for (; n > m_.left; twist()) n -= m_.left;
    m_.left -= n;
  }

  // `n` <= kPiece normals, a multiple of 16; writes up to a vector more. `then(i, j)`: those of [i, j) are there.
  template <class Then>
  void normals(int64_t n, const Then& then, float* z) {
    alignas(64) uint32_t words[kPiece + kStreamBlock];
    draw(n, words);
    constexpr int64_t kStep = kWidth > 8 ? 2 * kStreamBlock : kStreamBlock, kCall = 128;
    for (int64_t from = 0; from < n; from += kCall) {
      const int64_t to = n - from < kCall ? n : from + kCall;
      for (int64_t i = from; i < to; i += kStep)
        for (int h = 0; h < 8; h += kWidth) {
          F32 first, second;
          torch_normals(load_apart(words + i + h), load_apart(words + i + h + 8), first, second);
          store_apart(z + i + h, first);
          store_apart(z + i + h + 8, second);
        }
      then(from, to);
    }
  }

 private:
  static constexpr int kWidth = U32::kWidth;

  void twist() {
    uint32_t* w = m_.words;
    for (int i = 0; i < kMersenne; i += kWidth) {
      const U32 far = load_words(w + (i + kMersenneFar) % kMersenne);
      const U32 made = twisted(load_words(w + i), load_words(w + i + 1), far);
      store_words(w + i, made);
      if (i < 16) store_words(w + kMersenne + i, made);  // the next state begins where this one ends
    }
    m_.left = kMersenne;
  }

  // The next `n` words; writes up to a vector more.
  void draw(int64_t n, uint32_t* to) {
    while (n > 0) {
      if (m_.left == 0) twist();
      const int64_t now = n < m_.left ? n : m_.left;
      const uint32_t* w = m_.words + (kMersenne - m_.left);
      for (int64_t i = 0; i < now; i += kWidth) store_words(to + i, tempered(load_words(w + i)));
      m_.left -= now, n -= now, to += now;
    }
  }

  Mersenne m_;
};

struct Nothing {
  template <class... Any>
  void operator()(Any...) const {}
};

// Rounds `n` numbers, up to a multiple of the lanes, as a tensor of this dtype would have.
inline void round_to(DType dtype, int64_t n, float* z) {
  alignas(64) u16 half[U32::kWidth];
  for (int64_t i = 0; dtype == DType::kBF16 && i < n; i += U32::kWidth)
    store_bf16x(half, load_f32(z + i)), store_f32(z + i, load_bf16x(half));
  for (int64_t i = 0; dtype == DType::kF16 && i < n; i += U32::kWidth)
    store_f16x(half, load_f32(z + i)), store_f32(z + i, load_f16x(half));
}

}  // namespace
}  // namespace FS_ISA
}  // namespace fs
