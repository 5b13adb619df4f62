// The loops of `update` on the CPU. Compiled once per instruction set with -DFS_ISA=<name>; see update.h.
#include "update.h"

#include "row_loop.h"

namespace fs {
namespace FS_ISA {
namespace {

template <class V, int L>
void run(const UpdateArgs& a, int64_t begin, int64_t end) {
  RowLoop<V, L> loop(a);
  const int64_t per_sample = (a.numel + kTile - 1) / kTile;
  int64_t prepared = -1;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t sample = tile / per_sample, i0 = tile % per_sample * kTile;
    const int64_t step = a.step[a.per_sample_step ? sample : 0];
    if (step != prepared) loop.prepare(a.table + (prepared = step) * kColumns);
    loop.tile(sample, i0, a.numel - i0 < kTile ? a.numel - i0 : kTile);
  }
}

}  // namespace

void update_tiles(const UpdateArgs& a, int64_t begin, int64_t end) {
  if (a.wide)
    run<double, 4>(a, begin, end);
  else
    run<F32, 4>(a, begin, end);
}

void update_from_stream(const UpdateArgs& a, const StreamArgs& noise, int64_t begin, int64_t end) {
  RowLoop<F32, 4> loop(a);
  loop.prepare(a.table + *a.step * kColumns);
  const int64_t per_sample = (a.numel + kTile - 1) / kTile;
  Stream stream(*noise.from);
  loop.draw_from(&stream, noise.dtype);
  stream.skip(begin / per_sample * a.numel + begin % per_sample * kTile);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t i0 = tile % per_sample * kTile, n = a.numel - i0 < kTile ? a.numel - i0 : kTile;
    loop.tile(tile / per_sample, i0, n);
    if (!loop.noisy()) stream.skip(n);
  }
  if (end == update_tile_count(a)) *noise.to = stream.state();
}

}  // namespace FS_ISA
}  // namespace fs
