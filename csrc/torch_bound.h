// A bound call of `update_`: its arguments are checked once, and then only addresses change. For loops on small states,
// where the dispatcher costs more than the arithmetic.
#pragma once
#include <memory>

#include "torch_args.h"

namespace fs {

struct Bound {
  UpdateArgs args;
  int64_t bytes[kOutputs + kTerms + kNoises];  // of the memory between first and last element of an operand
  int64_t stamp[kOutputs + kTerms + kNoises];  // operands of one stamp may be the same memory: dtype and strides

  int operands() const { return args.n_outs + args.n_terms + (args.key ? 0 : args.n_noises); }

  Operand& operand(int i) {
    if (i < args.n_outs) return args.outs[i];
    i -= args.n_outs;
    return i < args.n_terms ? args.terms[i] : args.noise[i - args.n_terms];
  }

  // New addresses: the step, the key (0 without), then outs, terms, noise. False: this needs the op, which says why.
  bool move(const int64_t* addresses) {
    args.step = reinterpret_cast<const int64_t*>(addresses[0]);
    args.key = reinterpret_cast<const uint64_t*>(addresses[1]);
    if (*args.step < 0 || *args.step >= args.rows) return false;
    const int count = operands();
    for (int i = 0; i < count; ++i) {
      if (addresses[2 + i] == 0) return false;
      operand(i).data = reinterpret_cast<void*>(addresses[2 + i]);
    }
    for (int o = 0; o < args.n_outs; ++o)
      for (int i = 0; i < count; ++i) {
        const int64_t a = addresses[2 + o], b = addresses[2 + i];
        const bool apart = a + bytes[o] <= b || b + bytes[i] <= a;
        const bool same = i >= args.n_outs && a == b && stamp[o] == stamp[i];
        if (i != o && !apart && !same) return false;
      }
    return true;
  }
};

// Null unless every operand is dense (in runs of memory) and one row serves the whole batch.
inline std::unique_ptr<Bound> make_bound(const Tensors& outs, const Tensors& terms, const Tensor& table,
                                         const Tensor& step, const std::optional<Tensor>& key, const Tensors& noise) {
  auto bound = std::make_unique<Bound>();
  Beside none;
  bound->args = make_update_args(outs, terms, table, step, key, noise, std::nullopt, std::nullopt, none);
  const UpdateArgs& a = bound->args;
  if (!a.unit || a.per_sample_step || a.numel == 0 || a.batch == 0) return nullptr;
  for (int i = 0; i < bound->operands(); ++i) {
    const Operand& x = bound->operand(i);
    if (a.batch > 1 && x.batch_stride < a.numel) return nullptr;
    bound->bytes[i] = ((a.batch - 1) * x.batch_stride + a.numel) * size_of(x.dtype);
    bound->stamp[i] = x.batch_stride * 8 + static_cast<int64_t>(x.dtype);
  }
  return bound;
}

}  // namespace fs
