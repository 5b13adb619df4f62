// The sums of `rescale` on the CPU, one build of them per instruction set. Their order: core/moments.h.
#pragma once
#include "../core/moments.h"
#include "../reduce_args.h"

namespace fs {

#define FS_DECLARE_ISA(NAME)                                                                             \
  namespace NAME {                                                                                       \
  void rescale_blocks(const RescaleArgs& args, int64_t sample, int64_t begin, int64_t end, Moments* to); \
  }
FS_DECLARE_ISA(isa_base)
FS_DECLARE_ISA(isa_avx2)
FS_DECLARE_ISA(isa_avx512)
#undef FS_DECLARE_ISA

// Writes the moments of blocks [begin, end) of a sample.
using RescaleBlocks = void (*)(const RescaleArgs&, int64_t, int64_t, int64_t, Moments*);

}  // namespace fs
