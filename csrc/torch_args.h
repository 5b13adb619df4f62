// Tensors of the stable ABI -> UpdateArgs: checks, then the fewest dimensions that describe all operands.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "overlap.h"
#include "update_args.h"

namespace fs {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline DType dtype_of(const Tensor& x, const char* name) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return DType::kF64;
    case ScalarType::Float:
      return DType::kF32;
    case ScalarType::Half:
      return DType::kF16;
    case ScalarType::BFloat16:
      return DType::kBF16;
    default:
      STD_TORCH_CHECK(false, name, ": allowed dtypes are float32, bfloat16, float16 and float64");
  }
  return DType::kF32;
}

// Collects operands with their full strides, then folds dimensions that are adjacent in all of them.
class Layout {
 public:
  static constexpr int kMaxDims = 16, kMaxOperands = kTerms + kNoises + kOutputs;
  static constexpr int64_t kLongRun = 32;  // elements; on a CPU 2 to 10 times faster as samples, slower below 16

  void add(const Tensor& x, const char* name, Operand& operand) {
    const auto sizes = x.sizes(), strides = x.strides();
    const int dims = static_cast<int>(sizes.size());
    if (count_ == 0) {
      STD_TORCH_CHECK(dims >= 1 && dims <= kMaxDims, name, ": got ", dims, " dimensions, allowed are 1..", kMaxDims);
      dims_ = dims;
      for (int d = 0; d < dims; ++d) size_[d] = sizes[d];
    }
    bool same = dims == dims_;
    for (int d = 0; same && d < dims; ++d) same = sizes[d] == size_[d];
    STD_TORCH_CHECK(same, name, ": all terms, noises and outputs must have one shape");
    operand.data = x.data_ptr();
    operand.dtype = dtype_of(x, name);
    int64_t reach = 0;
    for (int d = 0; d < dims; ++d) {
      stride_[count_][d] = strides[d];
      reach += (sizes[d] - 1) * strides[d];
    }
    const char* begin = static_cast<const char*>(operand.data);
    begin_[count_] = begin;
    end_[count_] = x.numel() ? begin + (reach + 1) * size_of(operand.dtype) : begin;
    operands_[count_++] = &operand;
  }

  // An output may be exactly a term, or apart from it. The first `outs` operands are the outputs.
  void check_overlap(int outs) const {
    check_overlap(outs, [=](int, int other) { return other >= outs; });
  }

  // The same where may_be(output, other) tells of which operands an output may be the memory.
  template <class MayBe>
  void check_overlap(int outs, const MayBe& may_be) const {
    for (int o = 0; o < outs; ++o) {
      if (begin_[o] == end_[o]) continue;  // no elements
      STD_TORCH_CHECK(!overlaps_itself(size_, stride_[o], dims_), "outs: got a tensor whose elements share memory");
      for (int t = 0; t < count_; ++t) {
        if (t == o || end_[o] <= begin_[t] || end_[t] <= begin_[o] || (may_be(o, t) && same_elements(o, t))) continue;
        STD_TORCH_CHECK(!share_memory(size_, dims_, stride_[o], size_of(operands_[o]->dtype), stride_[t],
                                      size_of(operands_[t]->dtype), begin_[t] - begin_[o]),
                        "outs: an output overlaps the memory of another tensor; it may be exactly a term, or apart");
      }
    }
  }

  // Whether a contiguous tensor of any shape is apart from the first `operands` operands.
  bool apart(const Tensor& x, int operands) const {
    const char* begin = static_cast<const char*>(x.data_ptr());
    const int64_t bytes = x.numel() * x.element_size(), none[kMaxDims] = {};
    for (int t = 0; t < operands; ++t)
      if (end_[t] > begin && begin + bytes > begin_[t] && begin_[t] != end_[t] &&
          share_memory(size_, dims_, stride_[t], size_of(operands_[t]->dtype), none, bytes, begin - begin_[t]))
        return false;
    return true;
  }
  int count() const { return count_; }

  // keep_samples: something depends on the sample. keep_order: something depends on the logical index in the sample.
  template <class Args>
  void finish(Args& a, bool keep_samples, bool keep_order) {
    a.batch = keep_samples ? size_[0] : 1;
    const int first = keep_samples ? 1 : 0;
    int order[kMaxDims], n = 0;
    a.numel = 1;
    for (int d = first; d < dims_; ++d) {
      a.numel *= size_[d];
      if (size_[d] != 1) order[n++] = d;
    }
    if (!keep_order)  // memory order of the first output: insertion sort, outermost first
      for (int i = 1; i < n; ++i)
        for (int j = i; j > 0 && stride_[0][order[j - 1]] < stride_[0][order[j]]; --j) {
          const int swap = order[j];
          order[j] = order[j - 1];
          order[j - 1] = swap;
        }
    int out = 0;
    int inner[kMaxDims];  // the innermost original dimension of each folded one
    int64_t size[kMaxDims];
    for (int i = 0; i < n; ++i) {
      const int d = order[i];
      bool folds = out > 0;
      for (int t = 0; folds && t < count_; ++t) folds = stride_[t][inner[out - 1]] == stride_[t][d] * size_[d];
      if (folds) {
        size[out - 1] *= size_[d];
        inner[out - 1] = d;
      } else {
        size[out] = size_[d];
        inner[out++] = d;
      }
    }
    STD_TORCH_CHECK(out <= kDims, "the strides of these tensors need ", out, " dimensions, at most ", kDims,
                    " are supported; call .contiguous() on some");
    int samples = keep_samples ? 0 : -1;  // the dimension from sample to sample
    int skip = 0;
    if (!keep_samples && out == 2 && size[1] >= kLongRun && unit_strides(inner[1])) {
      samples = inner[0], skip = 1;  // runs of memory, as in halves of samples: each is a sample of its own
      a.batch = size[0], a.numel = size[1];
    }
    a.ndim = out > skip ? out - skip : 1;
    a.size[0] = 1;
    for (int d = skip; d < out; ++d) a.size[d - skip] = size[d];
    for (int t = 0; t < count_; ++t) {
      operands_[t]->batch_stride = samples < 0 ? 0 : stride_[t][samples];
      operands_[t]->stride[0] = 1;
      for (int d = skip; d < out; ++d) operands_[t]->stride[d - skip] = stride_[t][inner[d]];
    }
    a.unit = a.ndim == 1 && (out == 0 || unit_strides(inner[out - 1]));
  }

 private:
  bool unit_strides(int d) const {
    for (int t = 0; t < count_; ++t)
      if (stride_[t][d] != 1) return false;
    return true;
  }
  bool same_elements(int a, int b) const {
    bool same = begin_[a] == begin_[b] && operands_[a]->dtype == operands_[b]->dtype;
    for (int d = 0; same && d < dims_; ++d) same = size_[d] == 1 || stride_[a][d] == stride_[b][d];
    return same;
  }

  int dims_ = 0, count_ = 0;
  int64_t size_[kMaxDims], stride_[kMaxOperands][kMaxDims];
  const char *begin_[kMaxOperands], *end_[kMaxOperands];
  Operand* operands_[kMaxOperands];
};

// `time` and `clock`: apart from all else, but that `step` may be clock[0].
inline Beside make_beside(const Layout& layout, int64_t batch, const Tensor& table, const Tensor& step,
                          const std::optional<Tensor>& key, const std::optional<Tensor>& time,
                          const std::optional<Tensor>& clock) {
  using torch::headeronly::ScalarType;
  const auto begin = [](const Tensor& x) { return static_cast<const char*>(x.data_ptr()); };
  const auto apart = [&](const Tensor& x, const Tensor& y) {
    return begin(x) + x.numel() * x.element_size() <= begin(y) || begin(y) + y.numel() * y.element_size() <= begin(x);
  };
  const auto check = [&](const Tensor& x, const char* name, const char* allowed, ScalarType type, int64_t size) {
    STD_TORCH_CHECK(x.scalar_type() == type && x.dim() == 1 && x.size(0) == size && x.is_contiguous(), name, allowed);
    STD_TORCH_CHECK(layout.apart(x, layout.count()) && apart(x, table) && (!key || apart(x, *key)), name,
                    ": overlaps the memory of another tensor");
  };
  Beside beside = {nullptr, nullptr, batch, false};
  if (time) {
    beside.wide = time->scalar_type() == ScalarType::Double;
    check(*time, "time", ": allowed is contiguous (B,) float32 or float64",
          beside.wide ? ScalarType::Double : ScalarType::Float, batch);
    STD_TORCH_CHECK(apart(*time, step), "time: overlaps the memory of step");
    beside.time = time->data_ptr();
  }
  if (clock) {
    check(*clock, "clock", ": allowed is contiguous (2,) int64", ScalarType::Long, 2);
    STD_TORCH_CHECK(!time || apart(*clock, *time), "clock: overlaps the memory of time");
    STD_TORCH_CHECK(apart(*clock, step) || (begin(step) == begin(*clock) && step.numel() == 1),
                    "clock: overlaps the memory of step; it may be the view clock[0]");
    beside.clock = static_cast<int64_t*>(clock->data_ptr());
  }
  return beside;
}

inline UpdateArgs make_update_args(const Tensors& outs, const Tensors& terms, const Tensor& table, const Tensor& step,
                                   const std::optional<Tensor>& key, const Tensors& noise,
                                   const std::optional<Tensor>& time, const std::optional<Tensor>& clock,
                                   Beside& beside) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(!outs.empty() && outs.size() <= kOutputs, "outs: got ", outs.size(), ", allowed are 1..", kOutputs);
  STD_TORCH_CHECK(terms.size() <= kTerms, "terms: got ", terms.size(), ", allowed are 0..", kTerms);
  STD_TORCH_CHECK(noise.size() <= kNoises, "noise: got ", noise.size(), ", allowed are 0..", kNoises);
  STD_TORCH_CHECK(!key || noise.empty(), "key, noise: got both; give keys or noise tensors");
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Double && table.dim() == 2 && table.size(1) == kColumns &&
                      table.is_contiguous(),
                  "table: allowed is contiguous (N, 48) float64");

  UpdateArgs a;
  a.n_terms = static_cast<int>(terms.size());
  a.n_outs = static_cast<int>(outs.size());
  a.n_noises = key ? kNoises : static_cast<int>(noise.size());
  Layout layout;
  for (size_t i = 0; i < outs.size(); ++i) layout.add(outs[i], "outs", a.outs[i]);
  for (size_t i = 0; i < terms.size(); ++i) layout.add(terms[i], "terms", a.terms[i]);
  for (size_t i = 0; i < noise.size(); ++i) layout.add(noise[i], "noise", a.noise[i]);
  layout.check_overlap(a.n_outs);
  a.wide = false;
  for (int i = 0; i < a.n_outs; ++i) a.wide |= a.outs[i].dtype == DType::kF64;
  for (int i = 0; i < a.n_terms; ++i) a.wide |= a.terms[i].dtype == DType::kF64;

  const int64_t batch = outs[0].size(0);
  STD_TORCH_CHECK(step.scalar_type() == ScalarType::Long &&
                      (step.dim() == 0 || (step.dim() == 1 && step.size(0) == batch && step.is_contiguous())),
                  "step: allowed is () or (B,) contiguous int64");
  STD_TORCH_CHECK(!key || (key->scalar_type() == ScalarType::UInt64 && key->dim() == 2 && key->size(0) == batch &&
                           key->size(1) == 2 && key->is_contiguous()),
                  "key: allowed is contiguous (B, 2) uint64, one per sample");
  a.per_sample_step = step.dim() == 1;
  a.table = static_cast<const double*>(table.data_ptr());
  a.rows = table.size(0);
  a.step = static_cast<const int64_t*>(step.data_ptr());
  a.key = key ? static_cast<const uint64_t*>(key->data_ptr()) : nullptr;
  beside = make_beside(layout, batch, table, step, key, time, clock);
  layout.finish(a, a.per_sample_step || key.has_value(), key.has_value());
  const int64_t per_counter = a.wide ? 2 : 4;
  a.chunks = (a.numel + per_counter - 1) / per_counter;
  return a;
}

}  // namespace fs
