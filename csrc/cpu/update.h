// The loops of `update`, one build of them per instruction set, and the choice among them.
#pragma once
#include "../update_args.h"
#include "torch_stream.h"

namespace fs {

constexpr int kUpdateTile = 2048;
constexpr int64_t kGrain = 32768;  // elements: below, a second thread costs more than it brings

// Tiles [begin, end). `update_from_stream` takes the noise of a row from a generator's stream, as if it were a tensor
// like the state (`noise.out` and `noise.count` are not used): for rows with one noise, float32 arithmetic, one step,
// some key that is not read, and samples of a multiple of 16 elements.
#define FS_DECLARE_ISA(NAME)                                                                            \
  namespace NAME {                                                                                      \
  void update_tiles(const UpdateArgs& args, int64_t begin, int64_t end);                                \
  void update_from_stream(const UpdateArgs& args, const StreamArgs& noise, int64_t begin, int64_t end); \
  }
FS_DECLARE_ISA(isa_base)
FS_DECLARE_ISA(isa_avx2)
FS_DECLARE_ISA(isa_avx512)
#undef FS_DECLARE_ISA

using UpdateTiles = void (*)(const UpdateArgs&, int64_t, int64_t);
using UpdateFromStream = void (*)(const UpdateArgs&, const StreamArgs&, int64_t, int64_t);

inline int64_t update_tile_count(const UpdateArgs& a) { return a.batch * ((a.numel + kUpdateTile - 1) / kUpdateTile); }

}  // namespace fs
