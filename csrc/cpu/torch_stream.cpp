// Tensors of normals from the stream of torch's CPU generator. Compiled once per instruction set with -DFS_ISA=<name>;
// see torch_stream.h. The stream has an order: whoever makes its second half first steps over its first.
#include "torch_stream.h"

#include "stream_words.h"

namespace fs {
namespace FS_ISA {
namespace {

void put(const StreamArgs& a, int64_t at, int64_t n, const float* z) {
  u16* half = static_cast<u16*>(a.out) + at;
  if (a.dtype == DType::kF32)
    std::memcpy(static_cast<float*>(a.out) + at, z, n * sizeof(float));
  else if (a.dtype == DType::kBF16)
    for (int64_t i = 0; i < n; i += U32::kWidth) store_bf16x(half + i, load_f32(z + i));
  else
    for (int64_t i = 0; i < n; i += U32::kWidth) store_f16x(half + i, load_f32(z + i));
}

}  // namespace

void stream_blocks(const StreamArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kPiece = Stream::kPiece;
  alignas(64) float z[kPiece + kStreamBlock];
  Stream stream(*a.from);
  stream.skip(begin * kStreamBlock);
  for (int64_t i = begin * kStreamBlock; i < end * kStreamBlock; i += kPiece) {
    const int64_t left = end * kStreamBlock - i, n = left < kPiece ? left : kPiece;
    stream.normals(n, Nothing{}, z);
    put(a, i, n, z);
  }
  if (end != stream_block_count(a)) return;
  if (const int64_t odd = a.count % kStreamBlock) {  // torch makes the last sixteen anew
    if (a.dtype == DType::kF32) stream.skip(odd);    // of words that it drew for these it makes nothing
    stream.normals(kStreamBlock, Nothing{}, z);
    put(a, a.count - kStreamBlock, kStreamBlock, z);
  }
  *a.to = stream.state();
}

}  // namespace FS_ISA
}  // namespace fs
