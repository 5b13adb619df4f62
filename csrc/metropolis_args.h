// What a launch of `metropolis` needs, as plain data: made once from tensors (torch_metropolis.h).
#pragma once
#include "core/metropolis.h"
#include "update_args.h"

namespace fs {

constexpr int kState = 0, kProposal = 1, kCache = 2, kFresh = 3;  // operands of the ratio, then the terms

struct MetropolisArgs {
  Operand operands[kOperands];
  Operand noise[kNoises];  // explicit noise tensors, used when key is null
  Operand outs[kOutputs];
  int32_t n_operands, n_outs, n_noises;
  bool wide;             // compute in float64
  bool unit;             // ndim == 1 and every stride is 1
  bool per_sample_step;  // step has `batch` entries, else one
  int32_t ndim;          // collapsed dimensions of a sample, outermost first; always >= 1
  int64_t size[kDims];
  int64_t batch, numel;
  int64_t chunks;       // counters that one draw of a sample takes: ceil(numel / normals per counter)
  const double* table;  // (rows, 96)
  int64_t rows;
  const int64_t* step;
  const uint64_t* key;    // (batch, 2): seed, offset; null without keyed noise
  const double* uniform;  // (batch,); null: from the key
  double* chain;          // (batch, 5)
};

// The move of chains that all kept their state, or all took the proposal, as an update without its table.
inline UpdateArgs move_args(const MetropolisArgs& a, bool accepted) {
  UpdateArgs m = {};
  m.terms[0] = a.operands[accepted ? kProposal : kState];
  m.terms[1] = a.operands[accepted ? kFresh : kCache];
  for (int j = 4; j < a.n_operands; ++j) m.terms[j - 2] = a.operands[j];
  for (int r = 0; r < a.n_noises; ++r) m.noise[r] = a.noise[r];
  for (int k = 0; k < a.n_outs; ++k) m.outs[k] = a.outs[k];
  m.n_terms = a.n_operands - 2, m.n_outs = a.n_outs, m.n_noises = a.n_noises;
  m.wide = a.wide, m.unit = a.unit, m.per_sample_step = a.per_sample_step;
  m.ndim = a.ndim;
  for (int d = 0; d < kDims; ++d) m.size[d] = a.size[d];
  m.batch = a.batch, m.numel = a.numel, m.chunks = a.chunks;
  m.step = a.step, m.key = a.key;
  return m;
}

}  // namespace fs
