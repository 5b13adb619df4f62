// Normals from the stream of torch's CPU generator, one build of the loops per instruction set.
#pragma once
#include "../core/mersenne.h"
#include "../update_args.h"

namespace fs {

constexpr int kStreamBlock = 16;  // torch makes normals by sixteen: words i and i + 8 give normals i and i + 8

// A state of MT19937: its last `left` words are not drawn yet. Reading and writing by whole vectors takes 16 more.
struct Mersenne {
  alignas(64) uint32_t words[kMersenne + 16];
  int64_t left;
};

// A tensor of `count` >= 16 contiguous normals; `from`: the state before the draw; `to`: gets the state after it.
struct StreamArgs {
  const Mersenne* from;
  Mersenne* to;
  void* out;
  DType dtype;
  int64_t count;
};

inline int64_t stream_block_count(const StreamArgs& a) { return a.count / kStreamBlock; }

// Blocks [begin, end) of sixteen; the last one also makes the odd end and `to`.
#define FS_DECLARE_STREAM(NAME)                                           \
  namespace NAME {                                                        \
  void stream_blocks(const StreamArgs& args, int64_t begin, int64_t end); \
  }
FS_DECLARE_STREAM(isa_base)
FS_DECLARE_STREAM(isa_avx2)
FS_DECLARE_STREAM(isa_avx512)
#undef FS_DECLARE_STREAM

using StreamBlocks = void (*)(const StreamArgs&, int64_t, int64_t);

}  // namespace fs
