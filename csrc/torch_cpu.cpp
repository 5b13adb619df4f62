// The CPU implementation of the ops, against the libtorch stable ABI.
#include "cpu/brownian.h"
#include "cpu/isa.h"
#include "cpu/update.h"
#include "torch_args.h"
#include "torch_brownian.h"

namespace fs {

static UpdateTiles update_loop() {
#if defined(__x86_64__)
  if (chosen_isa() == Isa::kAvx512) return isa_avx512::update_tiles;
  if (chosen_isa() == Isa::kAvx2) return isa_avx2::update_tiles;
#endif
  return isa_base::update_tiles;
}

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kGrain = 32768;

static void update_cpu(Tensors outs, Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key,
                       Tensors noise) {
  for (const Tensors* group : {&outs, &terms, &noise})
    for (const Tensor& x : *group) STD_TORCH_CHECK(x.is_cpu(), "outs, terms, noise: all must be on the CPU");
  STD_TORCH_CHECK(table.is_cpu() && step.is_cpu() && (!key || key->is_cpu()), "table, step, key: must be on the CPU");
  const UpdateArgs a = make_update_args(outs, terms, table, step, key, noise);
  for (int64_t i = 0; i < (a.per_sample_step ? a.batch : 1); ++i)
    STD_TORCH_CHECK(a.step[i] >= 0 && a.step[i] < a.rows, "step: got ", a.step[i], ", allowed are 0..", a.rows - 1);
  const int64_t tiles = update_tile_count(a);
  if (tiles == 0) return;
  const UpdateTiles loop = update_loop();
  const int64_t per_tile = a.numel < kUpdateTile ? a.numel : kUpdateTile;
  if (tiles * per_tile <= kGrain) return loop(a, 0, tiles);
  const int64_t grain = kGrain / per_tile > 0 ? kGrain / per_tile : 1;
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) { loop(a, begin, end); });
}

static BrownianTiles brownian_loop() {
#if defined(__x86_64__)
  if (chosen_isa() == Isa::kAvx512) return isa_avx512::brownian_tiles;
  if (chosen_isa() == Isa::kAvx2) return isa_avx2::brownian_tiles;
#endif
  return isa_base::brownian_tiles;
}

static void brownian_cpu(Tensor out, Tensor key, Tensor nodes, Tensor weights, Tensor step) {
  for (const Tensor* x : {&out, &key, &nodes, &weights, &step})
    STD_TORCH_CHECK(x->is_cpu(), "out, key, nodes, weights, step: all must be on the CPU");
  const BrownianArgs a = make_brownian_args(out, key, nodes, weights, step);
  for (int64_t i = 0; i < (a.per_sample_step ? a.batch : 1); ++i)
    STD_TORCH_CHECK(a.step[i] >= 0 && a.step[i] < a.rows, "step: got ", a.step[i], ", allowed are 0..", a.rows - 1);
  const int64_t tiles = brownian_tile_count(a);
  if (tiles == 0) return;
  const BrownianTiles loop = brownian_loop();
  const int64_t per_tile = a.numel < kBrownianTile ? a.numel : kBrownianTile;
  const int64_t grain = (kBrownianTile + per_tile - 1) / per_tile;  // a tile takes tens of microseconds
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) { loop(a, begin, end); });
}

}  // namespace fs

STABLE_TORCH_LIBRARY_IMPL(fastsample, CPU, m) {
  m.impl("update_", TORCH_BOX(&fs::update_cpu));
  m.impl("brownian_", TORCH_BOX(&fs::brownian_cpu));
}

extern "C" __attribute__((visibility("default"))) const char* fastsample_cpu_isa() {
  return fs::isa_name(fs::chosen_isa());
}
