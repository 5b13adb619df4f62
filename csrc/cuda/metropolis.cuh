// The kernels of `metropolis` on CUDA (docs/metropolis.md); which of them run is said in choose.h.
// In one launch: the thread blocks of a cluster hold a sample in shared memory, sum, choose, and move what they hold.
// In two: sums of the blocks of elements; then every thread block folds those of its sample, chooses, and moves its
// part. The order of the sums is that of core/moments.h in both, so they give the same bits.
// tests/test_metropolis_body.py runs this file on the host, so it uses no warp intrinsics.
#pragma once
#include "chain.cuh"
#include "cluster.cuh"

namespace fs::gpu {

constexpr int kLargestCluster = 8;  // what every GPU with clusters can do
constexpr int kHeldBlocks = kStrands / kLargestCluster;

// One launch. `width`: lanes of a sample, less than kLanes for small samples, of which a thread block then takes many.
struct HeldPlan {
  int32_t cluster;  // thread blocks of a sample; 0: it does not fit
  int32_t blocks;   // of kMomentBlock elements, of a thread block
  int32_t turns;    // pieces that a thread holds
  int32_t samples, rows, width;
  int32_t offset[kOperands];  // of the operands in what is held, in bytes
  int64_t shared;             // bytes
};

// The shared memory of a thread block: this, the rows, the operands.
struct HeldSums {
  double sums[kLanes];
  double blocks[kSums][kHeldBlocks];
  uint32_t accept[kBlock];  // by sample
};

// Where pieces come from: the tensors, element by element if they are not plain.
template <class T, class At>
struct FromTensors {
  const MetropolisArgs& a;
  int64_t sample;
  At at;
  template <class S, int kAt>
  FS_HD void take(int j, Words& to) const {
    const Operand& o = a.operands[j];
    load<S, kAt>(o.data, T::of(o), offset_in(o, at, a.ndim, sample), to);
  }
};

template <class T>
FS_HD auto from_tensors(const MetropolisArgs& a, int64_t sample, int64_t i) {
  if constexpr (T::kPiece > 1)
    return FromTensors<T, int64_t>{a, sample, i};
  else
    return FromTensors<T, Place>{a, sample, place_of(a, i)};
}

// What a thread block holds, from element `i` of it on.
template <class T>
struct Held {
  const MetropolisArgs& a;
  const HeldPlan& p;
  char* memory;
  int64_t i;
  template <class S, int kAt>
  FS_HD void take(int j, Words& to) const {
    load<S, kAt>(memory + p.offset[j], T::of(a.operands[j]), i, to);
  }
};

template <class T>
struct FromHeld : FromChosen<T> {
  const HeldPlan& p;
  char* memory;
  int i;
  FS_HD FromHeld(const MetropolisArgs& a, bool accept, const HeldPlan& plan, char* held, int from)
      : FromChosen<T>{a, accept}, p(plan), memory(held), i(from) {}
  template <class S, int kE>
  FS_HD void piece(int64_t, int64_t, int j, Words& to) const {
    load<S, kE>(memory + p.offset[this->operand(j)], this->type(j), i, to);
  }
  template <class S>
  FS_HD void element(int64_t, const Place&, int e, int j, Words& to) const {
    load<S, 1>(memory + p.offset[this->operand(j)], this->type(j), i + e, to);
  }
};

// Sum `kind` of the lanes of a thread: its elements first, first + kLanes, ... of the sample, kChainPiece side by side.
// from(round, e, i) says where the elements from i on are.
template <class S, class T, class From>
FS_HD void sum_lanes(const MetropolisArgs& a, const StagedChain<S>& chain, int kind, int64_t first, const From& from,
                     double* sums) {
  constexpr int kAt = T::kPiece;
  FS_ROLLED
  for (int e = 0; e < kChainPiece; e += kAt) {
    double sum[kAt] = {};
    FS_ROLLED
    for (int round = 0; round < kRounds; ++round) {
      int64_t i = first + round * kLanes + e;
      if (i >= a.numel) break;
      pin(i);
      const auto source = from(round, e, i);
      add_elements<S, T, kAt>(a, chain, kind, [&](int j, Words& to) { source.template take<S, kAt>(j, to); }, sum);
    }
    FS_UNROLL
    for (int k = 0; k < kAt; ++k) sums[e + k] = sum[k];
  }
}

// Brings kChainPiece elements of what `need` has into shared memory.
template <class S, class T>
FS_DEVICE void hold_piece(const MetropolisArgs& a, const HeldPlan& p, uint32_t need, int64_t sample, int64_t i,
                          char* memory, int at) {
  constexpr int kAt = T::kPiece;
  FS_ROLLED
  for (int e = 0; e < kChainPiece && i + e < a.numel; e += kAt) {
    const auto from = from_tensors<T>(a, sample, i + e);
    FS_UNROLL
    for (int j = 0; j < kOperands; ++j) {
      if (!(need >> j & 1)) continue;
      const Operand& o = a.operands[j];
      char* to = memory + p.offset[j];
      if constexpr (kAt > 1) {
        const char* data = static_cast<const char*>(o.data);
        const int64_t from_at = offset_in(o, i, a.ndim, sample);
        if (T::of(o) == DType::kF32)
          copy_async<16>(to + at * 4, data + from_at * 4);
        else
          copy_async<8>(to + at * 2, data + from_at * 2);
      } else {
        Words word;
        from.template take<S, 1>(j, word);
        store<S, 1>(to, T::of(o), at + e, word);
      }
    }
  }
}

// What a sample is asked for in all: both ends of what may be chosen, and the terms of the ratio and of the move.
template <class S>
FS_HD uint32_t held_operands(const StagedChain<S>& chain, bool exists) {
  if (!exists) return 0;
  const uint32_t terms = chain.moves & 0xffu;
  return (chain.ratio & 0xffu) | 1u << kProposal | 1u << kFresh | (terms & 1u) << kState | (terms >> 1 & 1u) << kCache |
         (terms >> 2) << 4;
}

template <class S, class T>
__global__ void __launch_bounds__(kBlock, sizeof(S) == 8 ? 4 : 5)
    metropolis_held(const __grid_constant__ MetropolisArgs a, const __grid_constant__ HeldPlan p) {
  FS_DYNAMIC_SHARED(char, shared);
  HeldSums& own = *reinterpret_cast<HeldSums*>(shared);
  StagedChain<S>* rows = reinterpret_cast<StagedChain<S>*>(shared + sizeof(HeldSums));
  char* memory = reinterpret_cast<char*>(rows + p.rows);
  const int t = threadIdx.x;
  const int rank = static_cast<int>(blockIdx.x % p.cluster);
  const int64_t group = blockIdx.x / p.cluster, first_sample = group * p.samples;
  const int threads = p.width / kChainPiece, local = t / threads, lane = t % threads * kChainPiece;
  const int64_t sample = first_sample + local;
  const bool here = local < p.samples && sample < a.batch;
  for (int i = t; i < p.rows * kDecisionColumns; i += kBlock)
    if (first_sample + i / kDecisionColumns < a.batch)
      stage_chain(a, first_sample + i / kDecisionColumns, i % kDecisionColumns, rows[i / kDecisionColumns]);
  __syncthreads();
  if (t < p.rows && first_sample + t < a.batch) stage_masks(a, first_sample + t, rows[t]);
  __syncthreads();
  const StagedChain<S>& chain = rows[p.rows == 1 || !here ? 0 : local];
  const int64_t begin = static_cast<int64_t>(rank) * p.blocks * kMomentBlock + lane;  // the first element of a thread
  if (here) {
    const uint32_t need = held_operands(chain, row_of(a, sample) != nullptr);
    FS_ROLLED
    for (int turn = 0; turn < p.turns && begin + turn * kLanes < a.numel; ++turn)
      hold_piece<S, T>(a, p, need, sample, begin + turn * kLanes, memory, (turn * kBlock + t) * kChainPiece);
    copies_wait();  // a thread reads what it brought, nothing else
  }
  uint32_t asked = 0;
  for (int i = 0; i < p.rows && first_sample + i < a.batch; ++i) asked |= sums_of(rows[i].ratio);
  const double energy = here && lane == 0 ? energy_of(a, sample) : 0.0;
  const int blocks = p.cluster * p.blocks;
  RatioSums total = {};
  FS_ROLLED
  for (int kind = 0; kind < kSums; ++kind) {
    if (!(asked >> kind & 1)) continue;
    FS_ROLLED
    for (int b = 0; b < p.blocks; ++b) {
      const int64_t first = begin + static_cast<int64_t>(b) * kMomentBlock;
      const auto from = [&](int round, int e, int64_t) {
        return Held<T>{a, p, memory, ((b * kRounds + round) * kBlock + t) * kChainPiece + e};
      };
      sum_lanes<S, T>(a, chain, kind, here ? first : a.numel, from, own.sums + t * kChainPiece);
      fold_lanes(own.sums, kLanes, p.width, t);
      if (t == 0) own.blocks[kind][b] = own.sums[0];
    }
    field(total, kind) = own.sums[t * kChainPiece];  // of lane 0
  }
  if (blocks > 1) {  // the strands, one block each
    if (p.cluster > 1)
      cluster_arrive(), cluster_wait();
    else
      __syncthreads();
    FS_ROLLED
    for (int kind = 0; kind < kSums; ++kind) {
      if (!(asked >> kind & 1)) continue;
      own.sums[t] = t < blocks ? read_of(&own.blocks[kind][t % p.blocks], t / p.blocks) : 0.0;
      fold_lanes(own.sums, kStrands, kStrands, t);
      field(total, kind) = own.sums[0];
      __syncthreads();
    }
    if (p.cluster > 1) cluster_arrive();  // no block ends while another reads its shared memory
  }
  if (here && lane == 0) own.accept[local] = decide(a, sample, energy, total, rank == 0);
  __syncthreads();
  const bool accept = here && own.accept[local];
  FS_ROLLED
  for (int turn = 0; here && turn < p.turns && begin + turn * kLanes < a.numel; ++turn) {
    const auto from = [&](int e) { return FromHeld<T>(a, accept, p, memory, (turn * kBlock + t) * kChainPiece + e); };
    move_piece<S, T>(a, from, chain, accept, sample, (begin + turn * kLanes) / kChainPiece);
  }
  if (p.cluster > 1) cluster_wait();
}

// Two launches. Sum `kind` of block b of a sample lies at at(kind, sample) + b; then energy_part() of every sample.
struct TwoPlan {
  int64_t blocks;  // of kMomentBlock elements, of a sample
  int64_t tiles;   // thread blocks of a sample in the second launch
  FS_HD int64_t at(const MetropolisArgs& a, int kind, int64_t sample) const {
    return (kind * a.batch + sample) * blocks;
  }
  FS_HD int64_t energies(const MetropolisArgs& a) const { return kSums * a.batch * blocks; }
  int64_t workspace(const MetropolisArgs& a) const { return 8 * (energies(a) + a.batch); }
};

// Thread blocks on a processor: element by element, the places take more registers.
template <class S, class T>
constexpr int kSumsAtOnce = sizeof(S) == 8  ? 4
                            : T::kPiece > 1 ? 8
                                            : 6;

// One thread block per block of elements.
template <class S, class T>
__global__ void __launch_bounds__(kBlock, kSumsAtOnce<S, T>)
    metropolis_sums(const __grid_constant__ MetropolisArgs a, const __grid_constant__ TwoPlan p, double* to) {
  __shared__ StagedChain<S> chain;
  __shared__ double sums[kLanes];
  const int t = threadIdx.x;
  const int64_t sample = blockIdx.x / p.blocks, block = blockIdx.x - sample * p.blocks;
  if (t < kDecisionColumns) stage_chain(a, sample, t, chain);
  __syncthreads();
  if (t == 0) stage_masks(a, sample, chain);
  if (t == 0 && block == 0) to[p.energies(a) + sample] = energy_of(a, sample);
  __syncthreads();
  const auto from = [&](int, int, int64_t i) { return from_tensors<T>(a, sample, i); };
  FS_ROLLED
  for (int kind = 0; kind < kSums; ++kind) {
    if (!(sums_of(chain.ratio) >> kind & 1)) continue;
    sum_lanes<S, T>(a, chain, kind, block * kMomentBlock + t * kChainPiece, from, sums + t * kChainPiece);
    fold_lanes(sums, kLanes, kLanes, t);
    if (t == 0) to[p.at(a, kind, sample) + block] = sums[0];
  }
}

// The last samples first: of those the second-level cache still has something.
template <class S, class T>
__global__ void __launch_bounds__(kBlock, sizeof(S) == 8 ? 4 : 8)
    metropolis_moves(const __grid_constant__ MetropolisArgs a, const __grid_constant__ TwoPlan p, const double* from) {
  __shared__ StagedChain<S> chain;
  __shared__ double sums[kStrands];
  __shared__ bool choice;
  const int t = threadIdx.x;
  const int64_t turned = blockIdx.x / p.tiles, tile = blockIdx.x - turned * p.tiles, sample = a.batch - 1 - turned;
  if (t < kDecisionColumns) stage_chain(a, sample, t, chain);
  __syncthreads();
  if (t == 0) stage_masks(a, sample, chain);
  __syncthreads();
  RatioSums total = {};
  FS_ROLLED
  for (int kind = 0; kind < kSums; ++kind) {
    if (!(sums_of(chain.ratio) >> kind & 1)) continue;
    const double* blocks = from + p.at(a, kind, sample);
    double strand = 0;
    for (int64_t b = t; b < p.blocks; b += kStrands) strand += blocks[b];
    sums[t] = strand;
    fold_lanes(sums, kStrands, kStrands, t);
    field(total, kind) = sums[0];
    __syncthreads();
  }
  if (t == 0) choice = decide(a, sample, from[p.energies(a) + sample], total, tile == 0);
  __syncthreads();
  const bool accept = choice;
  const auto chosen = [&](int) { return FromChosen<T>{a, accept}; };
  FS_ROLLED
  for (int64_t i = tile * kBlock + t; i * kChainPiece < a.numel; i += p.tiles * kBlock)
    move_piece<S, T>(a, chosen, chain, accept, sample, i);
}

}  // namespace fs::gpu
