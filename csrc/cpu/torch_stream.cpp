// Normals from the stream of torch's CPU generator. Compiled once per instruction set with -DFS_ISA=<name>; see
// torch_stream.h. The stream has an order: whoever makes its second half first steps over its first, which takes a
// sixth of the time that making normals of it does.
#include "torch_stream.h"

#include "../core/torch_normal.h"
#include "simd.h"

namespace fs {
namespace FS_ISA {
namespace {

constexpr int kWidth = U32::kWidth;
constexpr int64_t kPiece = 1024;  // words at a time: they and their normals stay in the first cache

void twist(Mersenne& m) {
  uint32_t* w = m.words;
  for (int i = 0; i < kMersenne; i += kWidth) {
    const U32 made = twisted(load_words(w + i), load_words(w + i + 1), load_words(w + (i + kMersenneFar) % kMersenne));
    store_words(w + i, made);
    if (i < 16) store_words(w + kMersenne + i, made);  // the next state begins where this one ends
  }
  m.left = kMersenne;
}

void skip(Mersenne& m, int64_t n) {
  for (; n > m.left; twist(m)) n -= m.left;
  m.left -= n;
}

// The next `n` words; writes up to a vector more.
void draw(Mersenne& m, int64_t n, uint32_t* to) {
  while (n > 0) {
    if (m.left == 0) twist(m);
    const int64_t now = n < m.left ? n : m.left;
    const uint32_t* w = m.words + (kMersenne - m.left);
    for (int64_t i = 0; i < now; i += kWidth) store_words(to + i, tempered(load_words(w + i)));
    m.left -= now, n -= now, to += now;
  }
}

// `n` words, a multiple of 16 -> as many normals in the same places; may write up to a block more.
void make_normals(const uint32_t* words, int64_t n, float* z) {
  constexpr int64_t kStep = kWidth > 8 ? 2 * kStreamBlock : kStreamBlock;
  for (int64_t i = 0; i < n; i += kStep)
    for (int h = 0; h < 8; h += kWidth) {
      F32 first, second;
      torch_normals(load_apart(words + i + h), load_apart(words + i + h + 8), first, second);
      store_apart(z + i + h, first);
      store_apart(z + i + h + 8, second);
    }
}

void put(const StreamArgs& a, int64_t at, int64_t n, const float* z) {
  u16* half = static_cast<u16*>(a.out) + at;
  if (a.dtype == DType::kF32) {
    std::memcpy(static_cast<float*>(a.out) + at, z, n * sizeof(float));
  } else if (a.dtype == DType::kBF16) {
    for (int64_t i = 0; i < n; i += kWidth) store_bf16x(half + i, load_f32(z + i));
  } else {
    for (int64_t i = 0; i < n; i += kWidth) store_f16x(half + i, load_f32(z + i));
  }
}

}  // namespace

void stream_blocks(const StreamArgs& a, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[kPiece + 16];
  alignas(64) float z[kPiece + 16];
  Mersenne m = *a.from;
  skip(m, begin * kStreamBlock);
  for (int64_t i = begin * kStreamBlock; i < end * kStreamBlock; i += kPiece) {
    const int64_t left = end * kStreamBlock - i, n = left < kPiece ? left : kPiece;
    draw(m, n, words);
    make_normals(words, n, z);
    put(a, i, n, z);
  }
  if (end != stream_block_count(a)) return;
  if (const int64_t odd = a.count % kStreamBlock) {  // torch makes the last sixteen anew
    if (a.dtype == DType::kF32) skip(m, odd);        // of words that it drew for these it makes nothing
    draw(m, kStreamBlock, words);
    make_normals(words, kStreamBlock, z);
    put(a, a.count - kStreamBlock, kStreamBlock, z);
  }
  *a.to = m;
}

}  // namespace FS_ISA
}  // namespace fs
