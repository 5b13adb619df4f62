// The loops of `brownian`, one build of them per instruction set.
#pragma once
#include "../brownian_args.h"

namespace fs {

constexpr int kBrownianTile = 2048;

#define FS_DECLARE_BROWNIAN(NAME)                                            \
  namespace NAME {                                                           \
  void brownian_tiles(const BrownianArgs& args, int64_t begin, int64_t end); \
  }
FS_DECLARE_BROWNIAN(isa_base)
FS_DECLARE_BROWNIAN(isa_avx2)
FS_DECLARE_BROWNIAN(isa_avx512)

using BrownianTiles = void (*)(const BrownianArgs&, int64_t, int64_t);

inline int64_t brownian_tile_count(const BrownianArgs& a) {
  return a.batch * ((a.numel + kBrownianTile - 1) / kBrownianTile);
}

}  // namespace fs
