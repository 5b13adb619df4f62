// Tensors of the stable ABI -> ThresholdArgs and RescaleArgs, with checks.
#pragma once
#include <cmath>

#include "reduce_args.h"
#include "torch_args.h"

namespace fs {

inline void fill_reduce_args(ReduceArgs& a, const Tensor& rows, const Tensors& terms, const Tensor& table,
                             const Tensor& step) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(!terms.empty() && terms.size() <= kTerms, "terms: got ", terms.size(), ", allowed are 1..", kTerms);
  Layout layout;
  a.n_terms = static_cast<int>(terms.size());
  a.wide = false;
  for (int i = 0; i < a.n_terms; ++i) {
    layout.add(terms[i], "terms", a.terms[i]);
    a.wide |= a.terms[i].dtype == DType::kF64;
  }
  const int64_t batch = terms[0].size(0);
  const auto is_table = [](const Tensor& x) {
    return x.scalar_type() == ScalarType::Double && x.dim() == 2 && x.size(1) == kColumns && x.is_contiguous();
  };
  STD_TORCH_CHECK(is_table(table), "table: allowed is contiguous (N, 48) float64");
  STD_TORCH_CHECK(is_table(rows) && rows.size(0) == batch, "rows: allowed is contiguous (B, 48) float64");
  STD_TORCH_CHECK(step.scalar_type() == ScalarType::Long &&
                      (step.dim() == 0 || (step.dim() == 1 && step.size(0) == batch && step.is_contiguous())),
                  "step: allowed is () or (B,) contiguous int64");
  a.per_sample_step = step.dim() == 1;
  a.table = static_cast<const double*>(table.data_ptr());
  a.table_rows = table.size(0);
  a.step = static_cast<const int64_t*>(step.data_ptr());
  a.out = static_cast<double*>(rows.data_ptr());
  STD_TORCH_CHECK(batch == 0 || a.out + batch * kColumns <= a.table || a.table + a.table_rows * kColumns <= a.out,
                  "rows: overlaps the memory of table");
  layout.finish(a, true, false);
}

inline ThresholdArgs make_threshold_args(const Tensor& rows, const Tensors& terms, const Tensor& table,
                                         const Tensor& step, double ratio, double low, double high) {
  STD_TORCH_CHECK(ratio >= 0 && ratio <= 1, "ratio: got ", ratio, ", allowed are 0..1");
  STD_TORCH_CHECK(low > 0 && std::isfinite(low), "low: got ", low, ", allowed are finite numbers above 0");
  STD_TORCH_CHECK(high > 0, "high: got ", high, ", allowed are numbers above 0, inf too");
  ThresholdArgs a;
  fill_reduce_args(a, rows, terms, table, step);
  a.ratio = ratio, a.low = low, a.high = high;
  return a;
}

inline RescaleArgs make_rescale_args(const Tensor& rows, const Tensors& terms, const Tensor& table, const Tensor& step,
                                     int64_t cond, int64_t uncond) {
  const int64_t count = static_cast<int64_t>(terms.size());
  STD_TORCH_CHECK(cond >= 0 && cond < count && uncond >= 0 && uncond < count && cond != uncond, "cond, uncond: got ",
                  cond, ", ", uncond, ", allowed are two terms of 0..", count - 1);
  RescaleArgs a;
  fill_reduce_args(a, rows, terms, table, step);
  a.cond = static_cast<int32_t>(cond), a.uncond = static_cast<int32_t>(uncond);
  return a;
}

}  // namespace fs
