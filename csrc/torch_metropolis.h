// Tensors of the stable ABI -> MetropolisArgs, with checks.
#pragma once
#include "metropolis_args.h"
#include "torch_args.h"

namespace fs {

inline MetropolisArgs make_metropolis_args(const Tensor& state, const Tensor& cache, const Tensors& outs,
                                           const Tensor& chain, const Tensor& proposal, const Tensor& fresh,
                                           const Tensors& terms, const Tensor& table, const Tensor& step,
                                           const std::optional<Tensor>& key, const Tensors& noise,
                                           const std::optional<Tensor>& uniform) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(outs.size() <= kOutputs, "outs: got ", outs.size(), ", allowed are 0..", kOutputs);
  STD_TORCH_CHECK(terms.size() <= kDecisionTerms, "terms: got ", terms.size(), ", allowed are 0..", kDecisionTerms);
  STD_TORCH_CHECK(noise.size() <= kNoises, "noise: got ", noise.size(), ", allowed are 0..", kNoises);
  STD_TORCH_CHECK(!key || noise.empty(), "key, noise: got both; give keys or noise tensors");
  STD_TORCH_CHECK(key || uniform, "key, uniform: got neither; the choice needs one");

  MetropolisArgs a = {};
  a.n_operands = 4 + static_cast<int>(terms.size());
  a.n_outs = static_cast<int>(outs.size());
  a.n_noises = key ? kNoises : static_cast<int>(noise.size());
  Layout layout;  // what is written comes first
  for (int k = 0; k < a.n_outs; ++k) layout.add(outs[k], "outs", a.outs[k]);
  layout.add(state, "state", a.operands[kState]);
  layout.add(cache, "cache", a.operands[kCache]);
  layout.add(proposal, "proposal", a.operands[kProposal]);
  layout.add(fresh, "fresh", a.operands[kFresh]);
  for (size_t i = 0; i < terms.size(); ++i) layout.add(terms[i], "terms", a.operands[4 + i]);
  for (size_t i = 0; i < noise.size(); ++i) layout.add(noise[i], "noise", a.noise[i]);
  const int written = a.n_outs + 2;
  layout.check_overlap(written, [&](int out, int other) { return out < a.n_outs && other == written; });
  for (int j = 0; j < a.n_operands; ++j) a.wide |= a.operands[j].dtype == DType::kF64;
  for (int k = 0; k < a.n_outs; ++k) a.wide |= a.outs[k].dtype == DType::kF64;

  const int64_t batch = state.size(0);
  const auto is_plain = [&](const Tensor& x, ScalarType type, int64_t rows, int64_t columns) {
    return x.scalar_type() == type && x.dim() == 2 && x.size(0) == rows && x.size(1) == columns && x.is_contiguous();
  };
  STD_TORCH_CHECK(is_plain(chain, ScalarType::Double, batch, kChain), "chain: allowed is contiguous (B, 5) float64");
  STD_TORCH_CHECK(table.dim() == 2 && is_plain(table, ScalarType::Double, table.size(0), kDecisionColumns),
                  "table: allowed is contiguous (N, 96) float64");
  STD_TORCH_CHECK(step.scalar_type() == ScalarType::Long &&
                      (step.dim() == 0 || (step.dim() == 1 && step.size(0) == batch && step.is_contiguous())),
                  "step: allowed is () or (B,) contiguous int64");
  STD_TORCH_CHECK(!key || is_plain(*key, ScalarType::UInt64, batch, 2),
                  "key: allowed is contiguous (B, 2) uint64, one per sample");
  STD_TORCH_CHECK(!uniform || (uniform->scalar_type() == ScalarType::Double && uniform->dim() == 1 &&
                               uniform->size(0) == batch && uniform->is_contiguous()),
                  "uniform: allowed is contiguous (B,) float64");
  const auto apart = [&](const Tensor& x, const char* name, int operands) {
    STD_TORCH_CHECK(layout.apart(x, operands), name, ": overlaps the memory of another tensor");
    const char *begin = static_cast<const char*>(x.data_ptr()), *chains = static_cast<const char*>(chain.data_ptr());
    STD_TORCH_CHECK(&x == &chain || begin + x.numel() * 8 <= chains || chains + chain.numel() * 8 <= begin, name,
                    ": overlaps the memory of chain");
  };
  apart(chain, "chain", layout.count());
  apart(table, "table", written);
  apart(step, "step", written);
  if (key) apart(*key, "key", written);
  if (uniform) apart(*uniform, "uniform", written);

  a.per_sample_step = step.dim() == 1;
  a.table = static_cast<const double*>(table.data_ptr());
  a.rows = table.size(0);
  a.step = static_cast<const int64_t*>(step.data_ptr());
  a.key = key ? static_cast<const uint64_t*>(key->data_ptr()) : nullptr;
  a.uniform = uniform ? static_cast<const double*>(uniform->data_ptr()) : nullptr;
  a.chain = static_cast<double*>(chain.data_ptr());
  layout.finish(a, true, true);
  const int64_t per_counter = a.wide ? 2 : 4;
  a.chunks = (a.numel + per_counter - 1) / per_counter;
  return a;
}

}  // namespace fs
