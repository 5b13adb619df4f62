// The loops of `update`, one build of them per instruction set, and the choice among them.
#pragma once
#include "../update_args.h"

namespace fs {

constexpr int kUpdateTile = 2048;

#define FS_DECLARE_ISA(NAME)                                             \
  namespace NAME {                                                       \
  void update_tiles(const UpdateArgs& args, int64_t begin, int64_t end); \
  }
FS_DECLARE_ISA(isa_base)
FS_DECLARE_ISA(isa_avx2)
FS_DECLARE_ISA(isa_avx512)
#undef FS_DECLARE_ISA

using UpdateTiles = void (*)(const UpdateArgs&, int64_t, int64_t);

inline int64_t update_tile_count(const UpdateArgs& a) { return a.batch * ((a.numel + kUpdateTile - 1) / kUpdateTile); }

}  // namespace fs
