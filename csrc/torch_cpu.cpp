// The CPU implementation of the ops, against the libtorch stable ABI.
#include "cpu/brownian.h"
#include "cpu/isa.h"
#include "cpu/metropolis.h"
#include "cpu/rescale.h"
#include "cpu/threshold_search.h"
#include "cpu/update.h"
#include "torch_args.h"
#include "torch_bound.h"
#include "torch_brownian.h"
#include "torch_metropolis.h"
#include "torch_reduce.h"

namespace fs {

static UpdateTiles update_loop() { return FS_OF_ISA(update_tiles); }

static void run_update(const UpdateArgs& a) {
  const int64_t tiles = update_tile_count(a);
  if (tiles == 0) return;
  const UpdateTiles loop = update_loop();
  const int64_t per_tile = a.numel < kUpdateTile ? a.numel : kUpdateTile;
  if (tiles * per_tile <= kGrain) return loop(a, 0, tiles);
  const int64_t grain = kGrain / per_tile > 0 ? kGrain / per_tile : 1;
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) { loop(a, begin, end); });
}

static void advance_cpu(Tensors outs, Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key,
                        Tensors noise, std::optional<Tensor> time, std::optional<Tensor> clock) {
  for (const Tensors* group : {&outs, &terms, &noise})
    for (const Tensor& x : *group) STD_TORCH_CHECK(x.is_cpu(), "outs, terms, noise: all must be on the CPU");
  STD_TORCH_CHECK(table.is_cpu() && step.is_cpu() && (!key || key->is_cpu()), "table, step, key: must be on the CPU");
  STD_TORCH_CHECK((!time || time->is_cpu()) && (!clock || clock->is_cpu()), "time, clock: must be on the CPU");
  Beside beside;
  const UpdateArgs a = make_update_args(outs, terms, table, step, key, noise, time, clock, beside);
  for (int64_t i = 0; i < (a.per_sample_step ? a.batch : 1); ++i)
    STD_TORCH_CHECK(a.step[i] >= 0 && a.step[i] < a.rows, "step: got ", a.step[i], ", allowed are 0..", a.rows - 1);
  run_update(a);
  for (int64_t b = 0; beside.time && b < beside.samples; ++b) write_time(a, beside, b);
  if (beside.clock) ++*beside.clock;  // last: step may be this number
}

static void update_cpu(Tensors outs, Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key,
                       Tensors noise) {
  advance_cpu(std::move(outs), std::move(terms), std::move(table), std::move(step), std::move(key), std::move(noise),
              std::nullopt, std::nullopt);
}

static int64_t bind_update_cpu(Tensors outs, Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key,
                               Tensors noise) {
  return reinterpret_cast<int64_t>(make_bound(outs, terms, table, step, key, noise).release());
}

static BrownianTiles brownian_loop() { return FS_OF_ISA(brownian_tiles); }

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

static void check_reduce(const ReduceArgs& a, const Tensor& rows, const Tensors& terms, const Tensor& table,
                         const Tensor& step) {
  for (const Tensor& x : terms) STD_TORCH_CHECK(x.is_cpu(), "terms: all must be on the CPU");
  STD_TORCH_CHECK(rows.is_cpu() && table.is_cpu() && step.is_cpu(), "rows, table, step: must be on the CPU");
  for (int64_t i = 0; i < (a.per_sample_step ? a.batch : a.batch > 0); ++i)
    STD_TORCH_CHECK(a.step[i] >= 0 && a.step[i] < a.table_rows, "step: got ", a.step[i], ", allowed are 0..",
                    a.table_rows - 1);
}

static ThresholdLoops threshold_loops() { return {FS_OF_ISA(threshold_pass), FS_OF_ISA(threshold_found)}; }

// Samples [begin, end), each shared by `parts`.
template <class S, class Parallel>
static void threshold_samples(const ThresholdArgs& a, int64_t begin, int64_t end, int64_t parts,
                              const Parallel& parallel) {
  Search<S, Parallel> search(a, threshold_loops(), parts, parallel);
  for (int64_t b = begin; b < end; ++b) {
    const double q = a.numel > 0 ? search.quantile(b) : a.low, s = limit_scale(q, a.low, a.high);
    for (int c = 0; c < kColumns; ++c) a.out[b * kColumns + c] = thresholded(row_of(a, b), c, s);
  }
}

template <class S>
static void threshold_all(const ThresholdArgs& a) {
  const int64_t fewest = (a.numel >> 31) + 1;  // a part has at most 2^31 elements: 32 bits count them
  const int64_t threads = torch::stable::get_num_threads();
  const auto alone = [](int64_t parts, const auto& f) {
    for (int64_t i = 0; i < parts; ++i) f(i);
  };
  if (a.batch * a.numel <= kGrain) return threshold_samples<S>(a, 0, a.batch, fewest, alone);
  if (a.batch >= threads || a.numel < 4 * kGrain) {
    const int64_t grain = a.numel < kGrain ? kGrain / a.numel : 1;
    return torch::stable::parallel_for(
        0, a.batch, grain, [&](int64_t begin, int64_t end) { threshold_samples<S>(a, begin, end, fewest, alone); });
  }
  const auto together = [](int64_t parts, const auto& f) {
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  };
  const int64_t parts = threads < a.numel / kGrain ? threads : a.numel / kGrain;
  threshold_samples<S>(a, 0, a.batch, parts > fewest ? parts : fewest, together);
}

static void threshold_cpu(Tensor rows, Tensors terms, Tensor table, Tensor step, double ratio, double low,
                          double high) {
  const ThresholdArgs a = make_threshold_args(rows, terms, table, step, ratio, low, high);
  check_reduce(a, rows, terms, table, step);
  a.wide ? threshold_all<double>(a) : threshold_all<float>(a);
}

static RescaleBlocks rescale_loop() { return FS_OF_ISA(rescale_blocks); }

static void rescale_cpu(Tensor rows, Tensors terms, Tensor table, Tensor step, int64_t cond, int64_t uncond) {
  const RescaleArgs a = make_rescale_args(rows, terms, table, step, cond, uncond);
  check_reduce(a, rows, terms, table, step);
  const RescaleBlocks loop = rescale_loop();
  const int64_t per_sample = (a.numel + kMomentBlock - 1) / kMomentBlock, all = a.batch * per_sample;
  std::vector<Moments> blocks(all);
  const auto some = [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t sample = begin / per_sample, last = (sample + 1) * per_sample, stop = last < end ? last : end;
      loop(a, sample, begin - sample * per_sample, stop - sample * per_sample, blocks.data() + begin);
      begin = stop;
    }
  };
  constexpr int64_t kBlocks = kGrain / kMomentBlock;
  if (all <= kBlocks)
    some(0, all);
  else
    torch::stable::parallel_for(0, all, kBlocks, some);
  for (int64_t b = 0; b < a.batch; ++b) {
    Moments strands[kStrands] = {};
    for (int64_t i = 0; i < per_sample; ++i) strands[i % kStrands] = strands[i % kStrands] + blocks[b * per_sample + i];
    fold(strands, kStrands);
    const double* row = row_of(a, b);
    const double factor = rescale_factor(strands[0], a.numel, row);
    for (int c = 0; c < kColumns; ++c) a.out[b * kColumns + c] = rescaled(row, c, a.cond, a.uncond, factor);
  }
}

static MetropolisLoops metropolis_loops() {
  return {FS_OF_ISA(metropolis_samples), FS_OF_ISA(metropolis_blocks), FS_OF_ISA(metropolis_tiles)};
}

static void metropolis_cpu(Tensor state, Tensor cache, Tensors outs, Tensor chain, Tensor proposal, Tensor fresh,
                           Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key, Tensors noise,
                           std::optional<Tensor> uniform) {
  for (const Tensors* group : {&outs, &terms, &noise})
    for (const Tensor& x : *group) STD_TORCH_CHECK(x.is_cpu(), "outs, terms, noise: all must be on the CPU");
  for (const Tensor* x : {&state, &cache, &chain, &proposal, &fresh, &table, &step})
    STD_TORCH_CHECK(x->is_cpu(), "state, cache, chain, proposal, fresh, table, step: all must be on the CPU");
  STD_TORCH_CHECK((!key || key->is_cpu()) && (!uniform || uniform->is_cpu()), "key, uniform: must be on the CPU");
  const MetropolisArgs a =
      make_metropolis_args(state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform);
  for (int64_t i = 0; i < (a.per_sample_step ? a.batch : 1); ++i)
    STD_TORCH_CHECK(a.step[i] >= 0 && a.step[i] < a.rows, "step: got ", a.step[i], ", allowed are 0..", a.rows - 1);
  run_metropolis(a, metropolis_loops(), torch::stable::get_num_threads(),
                 [](int64_t count, int64_t grain, const auto& f) { torch::stable::parallel_for(0, count, grain, f); });
}

}  // namespace fs

// The address of a `Bound`, or 0; `fastsample_call` and `fastsample_unbind` are what it is for.
STABLE_TORCH_LIBRARY_FRAGMENT(fastsample, m) {
  m.def("bind_update(Tensor[] outs, Tensor[] terms, Tensor table, Tensor step, Tensor? key, Tensor[] noise) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fastsample, CPU, m) {
  m.impl("bind_update", TORCH_BOX(&fs::bind_update_cpu));
  m.impl("update_", TORCH_BOX(&fs::update_cpu));
  m.impl("advance_", TORCH_BOX(&fs::advance_cpu));
  m.impl("brownian_", TORCH_BOX(&fs::brownian_cpu));
  m.impl("threshold_", TORCH_BOX(&fs::threshold_cpu));
  m.impl("rescale_", TORCH_BOX(&fs::rescale_cpu));
  m.impl("metropolis_", TORCH_BOX(&fs::metropolis_cpu));
}

extern "C" __attribute__((visibility("default"))) const char* fastsample_cpu_isa() {
  return fs::isa_name(fs::chosen_isa());
}

extern "C" __attribute__((visibility("default"))) void fastsample_unbind(void* bound) {
  delete static_cast<fs::Bound*>(bound);
}

// 1 if the update was done, 0 if nothing was touched because these addresses need the op.
extern "C" __attribute__((visibility("default"))) int fastsample_call(void* bound, const int64_t* addresses) {
  auto& call = *static_cast<fs::Bound*>(bound);
  if (!call.move(addresses)) return 0;
  fs::run_update(call.args);
  return 1;
}

// Keys (count, 2) of samples 0 .. count-1: those of the seed folded with each index.
extern "C" __attribute__((visibility("default"))) void fastsample_keys(uint64_t seed, int64_t count, uint64_t* keys) {
  for (int64_t sample = 0; sample < count; ++sample) {
    uint32_t r[4];
    fs::philox_at(seed, static_cast<uint64_t>(sample), r);
    for (int half = 0; half < 2; ++half)
      keys[2 * sample + half] = r[2 * half] | static_cast<uint64_t>(r[2 * half + 1]) << 32;
  }
}
