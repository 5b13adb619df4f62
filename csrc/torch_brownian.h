// Tensors of the stable ABI -> BrownianArgs, with checks.
#pragma once
#include "brownian_args.h"
#include "torch_args.h"

namespace fs {

inline BrownianArgs make_brownian_args(const Tensor& out, const Tensor& key, const Tensor& nodes, const Tensor& weights,
                                       const Tensor& step) {
  using torch::headeronly::ScalarType;
  BrownianArgs a;
  Layout layout;
  layout.add(out, "out", a.out);
  layout.check_overlap(1);
  const int64_t batch = out.size(0);
  STD_TORCH_CHECK(nodes.scalar_type() == ScalarType::Long && nodes.dim() == 2 && nodes.is_contiguous(),
                  "nodes: allowed is contiguous (N, M) int64");
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Double && weights.dim() == 2 && weights.is_contiguous() &&
                      weights.size(0) == nodes.size(0) && weights.size(1) == nodes.size(1),
                  "weights: allowed is contiguous float64 of the shape of nodes");
  STD_TORCH_CHECK(step.scalar_type() == ScalarType::Long &&
                      (step.dim() == 0 || (step.dim() == 1 && step.size(0) == batch && step.is_contiguous())),
                  "step: allowed is () or (B,) contiguous int64");
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::UInt64 && key.dim() == 2 && key.size(0) == batch &&
                      key.size(1) == 2 && key.is_contiguous(),
                  "key: allowed is contiguous (B, 2) uint64, one per sample");
  a.wide = a.out.dtype == DType::kF64;
  a.per_sample_step = step.dim() == 1;
  a.rows = nodes.size(0), a.width = nodes.size(1);
  a.nodes = static_cast<const int64_t*>(nodes.data_ptr());
  a.weights = static_cast<const double*>(weights.data_ptr());
  a.step = static_cast<const int64_t*>(step.data_ptr());
  a.key = static_cast<const uint64_t*>(key.data_ptr());
  layout.finish(a, true, true);
  return a;
}

}  // namespace fs
