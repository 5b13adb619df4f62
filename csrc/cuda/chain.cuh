// What the kernels of `metropolis` share: rows in shared memory, log-ratios, the choice, and the operands of the move.
#pragma once
#include "../metropolis_args.h"
#include "update.cuh"

namespace fs::gpu {

constexpr int kChainPiece = 4;  // elements that a thread takes at once: a lane each
static_assert(kBlock * kChainPiece == kLanes, "the threads of a block take all lanes");
constexpr int kSums = 3;  // the fields of RatioSums
constexpr int kMoveTerms = 2 + kDecisionTerms;

// A row in shared memory: the move, and from column 48 on the choice.
template <class S>
struct StagedChain {
  DecisionRow<S> row;
  Staged<S> move;
  uint32_t ratio, moves;  // what they read: ratio_needs() and mask_of()
};

FS_HD int64_t step_of(const MetropolisArgs& a, int64_t sample) { return a.step[a.per_sample_step ? sample : 0]; }

// The row of a sample in the table; null if its step does not exist.
FS_HD const double* row_of(const MetropolisArgs& a, int64_t sample) {
  const int64_t step = step_of(a, sample);
  return step >= 0 && step < a.rows ? a.table + step * kDecisionColumns : nullptr;
}

// Column by column, then, after the block has met, the masks.
template <class S>
FS_HD void stage_chain(const MetropolisArgs& a, int64_t sample, int column, StagedChain<S>& to) {
  if (column < kColumns) return stage(a, a.n_operands - 2, kDecisionColumns, sample, column, to.move);
  const double* row = row_of(a, sample);
  to.row.v[column] = row ? static_cast<S>(row[column]) : S(0);
}

template <class S>
FS_HD void stage_masks(const MetropolisArgs& a, int64_t sample, StagedChain<S>& to) {
  const double* row = row_of(a, sample);
  to.ratio = row ? ratio_needs<S>(to.row.v, row, a.n_operands) : 0u;
  to.moves = mask_of<S, kMoveTerms, kOutputs, kNoises>(to.move);
}

// Bit k: sum k is asked for; the log-ratio always is.
FS_HD uint32_t sums_of(uint32_t ratio) { return 1u | (ratio >> 8 & 6u); }

// Adds kAt elements to sum `kind`: the log-ratio, (u_1 - u_0)^2 or u_1^2. take(j, words) fetches operand j, four of
// them before the first is used. T says their dtypes, as for update.
template <class S, class T, int kAt, class Take>
FS_HD void add_elements(const MetropolisArgs& a, const StagedChain<S>& chain, int kind, const Take& take,
                        double (&sum)[kAt]) {
  const uint32_t mask = kind == 0 ? chain.ratio : kind == 1 ? 3u : 2u;
  S q[kAt], g[kAt], h[kAt], d[kAt];
  FS_UNROLL
  for (int e = 0; e < kAt; ++e) q[e] = g[e] = h[e] = d[e] = S(0);
  FS_UNROLL
  for (int first = 0; first < kOperands; first += kAtOnce) {
    if (first >= a.n_operands) break;
    Words words[kAtOnce];
    FS_UNROLL
    for (int j = 0; j < kAtOnce; ++j)
      if (mask >> (first + j) & 1) take(first + j, words[j]);
    FS_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      if (!(mask >> (first + j) & 1)) continue;
      S x[kAt];
      FS_UNROLL
      for (int e = 0; e < kAt; ++e) {
        x[e] = get<S, kAt>(words[j], T::of(a.operands[first + j]), e);
        if (first + j == kState || first + j == kProposal) d[e] = x[e] - d[e];
      }
      if (kind == 0) add_operand<S, S, kAt>(chain.row.v, first + j, x, q, g, h);
    }
  }
  S s[kAt];
  if (kind == 0) close_ratio<S, S, kAt>(chain.row.v, mask, d, q, g, h, s);
  FS_UNROLL
  for (int e = 0; e < kAt; ++e) sum[e] += kind == 0 ? s[e] : d[e] * d[e];
}

// Folds each `width` of `n` sums in halves into its first. All threads of the block call it.
FS_DEVICE void fold_lanes(double* sums, int n, int width, int t) {
  for (int half = width / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = t; i < n / width * half; i += kBlock) {
      const int at = i / half * width + i % half;
      sums[at] = sums[at] + sums[at + half];
    }
  }
  __syncthreads();
}

FS_HD double& field(RatioSums& sums, int kind) { return kind == 0 ? sums.s : kind == 1 ? sums.dd : sums.pp; }

// The choice of a sample; one of its blocks writes it down. `energy`: energy_part(), read before anyone writes.
FS_HD bool decide(const MetropolisArgs& a, int64_t sample, double energy, const RatioSums& sums, bool writes) {
  const double* row = row_of(a, sample);
  const double ratio = row ? energy + sums.s : static_cast<double>(NAN);
  bool accept = false;
  if (row) {
    const double u = a.uniform ? a.uniform[sample]
                               : choice_uniform(a.key[2 * sample], a.key[2 * sample + 1],
                                                static_cast<uint64_t>(static_cast<int64_t>(row[kUniformDraw])));
    accept = accepts(row, ratio, sums, u);
  }
  if (writes) record_choice(a.chain + sample * kChain, ratio, accept);
  return accept;
}

FS_HD double energy_of(const MetropolisArgs& a, int64_t sample) {
  const double* row = row_of(a, sample);
  return row ? energy_part(row, a.chain + sample * kChain) : 0.0;
}

// A plain tensor: the place is the element.
FS_HD int64_t offset_in(const Operand& o, int64_t i, int, int64_t sample) { return sample * o.batch_stride + i; }

// The terms of the move where the choice is made: state and cache, or what takes their place and is stored there.
template <class T>
struct FromChosen {
  const MetropolisArgs& a;
  bool accept;
  FS_HD int operand(int j) const { return j == 0 ? kState + accept : j == 1 ? kCache + accept : j + 2; }
  FS_HD DType type(int j) const { return T::of(a.operands[operand(j)]); }
  template <class S, int kE>
  FS_HD void piece(int64_t sample, int64_t piece, int j, Words& to) const {
    const Operand& o = a.operands[operand(j)];
    load<S, kE>(o.data, T::of(o), offset_in(o, piece * kE, a.ndim, sample), to);
  }
  template <class S>
  FS_HD void element(int64_t sample, const Place& place, int, int j, Words& to) const {
    const Operand& o = a.operands[operand(j)];
    load<S, 1>(o.data, T::of(o), offset_in(o, place, a.ndim, sample), to);
  }
  template <class S, int kE, class At>
  FS_HD void took(int64_t sample, const At& place, const Words (&words)[kAtOnce]) const {
    if (!accept) return;
    At at = place;
    if constexpr (kE > 1) at = place * kE;
    FS_UNROLL
    for (int j = 0; j < 2; ++j) {
      const Operand& to = a.operands[j == 0 ? kState : kCache];
      S x[kE];
      FS_UNROLL
      for (int e = 0; e < kE; ++e) x[e] = get<S, kE>(words[j], T::of(a.operands[j == 0 ? kProposal : kFresh]), e);
      Words stored;
      put<S, kE>(stored, T::of(to), 0, x);
      store<S, kE>(to.data, T::of(to), offset_in(to, at, a.ndim, sample), stored);
    }
  }
};

// Moves the kChainPiece elements `piece` of a sample. `from(at)` says where the terms of its elements from `at` on are.
template <class S, class T, class From>
FS_HD void move_piece(const MetropolisArgs& a, const From& from, const StagedChain<S>& chain, bool accept,
                      int64_t sample, int64_t piece) {
  const uint32_t mask = chain.moves | (accept ? 3u : 0u);  // what is accepted is read, and stored, in any case
  if constexpr (T::kPiece == kChainPiece) {
    update_vector<S, T, kMoveTerms, kOutputs, kKeyed>(a, from(0), chain.move, mask, sample, piece);
  } else {
    constexpr int kC = Chunk<S>::kSize;
    FS_ROLLED
    for (int at = 0; at < kChainPiece; at += kC)
      update_strided<S, kMoveTerms, kOutputs>(a, from(at), chain.move, mask, sample,
                                              piece * (kChainPiece / kC) + at / kC);
  }
}

}  // namespace fs::gpu
