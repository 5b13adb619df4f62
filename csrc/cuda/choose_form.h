// In how many launches `metropolis` runs.
//
// In one, a sample is read once: with float32, no terms and one output, 16 bytes an element, and 4 to 12 written. In
// two, the sums read 16 bytes and the moves 8 more, the two tensors that were chosen. A small call saves the second
// launch as well. One launch needs the operands of a sample in the shared memory of its thread blocks: 16 bytes an
// element, 64 KiB for a block of 4096. A cluster of 8 blocks on sm_90 and sm_100 (227 KiB a thread block) holds 98,304
// elements in float32, 229,376 in 16 bits; on sm_120 (99 KiB) 32,768 and 98,304; one thread block of sm_80 (163 KiB)
// 8192 and 20,480. A sample is laid over as many thread blocks as it can, so that small batches use more of the GPU,
// and three thread blocks of 64 KiB fit a processor of sm_90: while one computes, the others load.
#pragma once
#include "metropolis.cuh"

namespace fs::gpu {

struct Machine {
  int processors;
  int64_t shared;  // most bytes of shared memory of a thread block
  int cluster;     // most thread blocks of a cluster; 1: there are none
};

// Whether all tensors can be taken in pieces. Given noise goes element by element, as float64 does.
inline bool in_pieces(const MetropolisArgs& a) {
  bool whole = a.unit && a.numel % kChainPiece == 0 && (a.key != nullptr || a.n_noises == 0);
  const auto look = [&](const Operand& o) {
    whole &= o.dtype != DType::kF64 && o.batch_stride % kChainPiece == 0 &&
             reinterpret_cast<uintptr_t>(o.data) % (kChainPiece * size_of(o.dtype)) == 0;
  };
  for (int j = 0; j < a.n_operands; ++j) look(a.operands[j]);
  for (int k = 0; k < a.n_outs; ++k) look(a.outs[k]);
  return whole;
}

constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
inline int64_t sum_blocks(const MetropolisArgs& a) { return a.numel ? ceil_div(a.numel, kMomentBlock) : 1; }

// One launch; its cluster is 0 if a sample does not fit.
inline HeldPlan hold(const MetropolisArgs& a, const Machine& m) {
  constexpr int kMostRows = 32;
  const int64_t blocks = sum_blocks(a),
                each = ceil_div(blocks, m.cluster < kLargestCluster ? m.cluster : kLargestCluster);
  HeldPlan p = {};
  if (each > kHeldBlocks) return p;
  p.blocks = static_cast<int32_t>(each);
  p.turns = static_cast<int32_t>(blocks > 1 ? each * kRounds : ceil_div(a.numel, kLanes));
  p.width = kLanes;
  while (p.width > kChainPiece && p.width / 2 >= a.numel) p.width /= 2;
  p.samples = kLanes / p.width;
  if (a.per_sample_step && p.samples > kMostRows) p.samples = kMostRows;
  p.rows = a.per_sample_step ? p.samples : 1;
  p.shared = sizeof(HeldSums) + p.rows * (a.wide ? sizeof(StagedChain<double>) : sizeof(StagedChain<float>));
  int64_t held = 0;
  for (int j = 0; j < a.n_operands; ++j) {
    p.offset[j] = static_cast<int32_t>(held);
    held += p.turns * kLanes * size_of(a.operands[j].dtype);
  }
  p.shared += held;
  if (p.shared <= m.shared) p.cluster = static_cast<int32_t>(ceil_div(blocks, each));
  return p;
}

// Two launches. The second has enough thread blocks to fill every processor twice, and then up to 16 pieces a thread,
// so that the sums of a sample are not folded too often.
inline TwoPlan share(const MetropolisArgs& a, const Machine& m) {
  const int64_t all = ceil_div(a.numel, kLanes), fewest = ceil_div(all, 16);
  const int64_t wanted = ceil_div(16 * static_cast<int64_t>(m.processors), a.batch ? a.batch : 1);
  return {sum_blocks(a), all == 0 ? 1 : wanted > all ? all : wanted > fewest ? wanted : fewest};
}

template <class S, class T, class On>
void run_chains(const MetropolisArgs& a, const HeldPlan& held, const TwoPlan& two, double* memory, const On& on) {
  if (held.cluster > 0) {
    on.launch_clusters(metropolis_held<S, T>, ceil_div(a.batch, held.samples) * held.cluster, held.cluster, kBlock,
                       held.shared, a, held);
    return;
  }
  on.launch(metropolis_sums<S, T>, a.batch * two.blocks, kBlock, 0, a, two, memory);
  on.launch(metropolis_moves<S, T>, a.batch * two.tiles, kBlock, 0, a, two, memory);
}

// `memory`: two.workspace() bytes, unless a sample fits.
template <class On>
void run_metropolis(const MetropolisArgs& a, const HeldPlan& held, const TwoPlan& two, double* memory, const On& on) {
  if (a.batch == 0) return;
  bool f32 = true;
  for (int j = 0; j < a.n_operands; ++j) f32 &= a.operands[j].dtype == DType::kF32;
  for (int k = 0; k < a.n_outs; ++k) f32 &= a.outs[k].dtype == DType::kF32;
  if (a.wide)
    run_chains<double, Mixed<1>>(a, held, two, memory, on);
  else if (!in_pieces(a))
    run_chains<float, Mixed<1>>(a, held, two, memory, on);
  else if (f32)
    run_chains<float, All<DType::kF32, kChainPiece>>(a, held, two, memory, on);
  else
    run_chains<float, Mixed<kChainPiece>>(a, held, two, memory, on);
}

}  // namespace fs::gpu
