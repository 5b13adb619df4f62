// What a launch of `update` needs, as plain data: made once from tensors (torch_args.h), read by CPU loops and kernels.
#pragma once
#include <cstdint>

#include "core/row.h"

namespace fs {

constexpr int kDims = 6;

enum class DType : int8_t { kF64, kF32, kF16, kBF16 };

inline int64_t size_of(DType t) { return t == DType::kF64 ? 8 : t == DType::kF32 ? 4 : 2; }

// One tensor: strides in elements, for the collapsed dimensions of a sample, and from sample to sample.
struct Operand {
  void* data;
  int64_t batch_stride;
  int64_t stride[kDims];
  DType dtype;
};

struct UpdateArgs {
  Operand terms[kTerms];
  Operand noise[kNoises];  // explicit noise tensors, used when key is null
  Operand outs[kOutputs];
  int32_t n_terms, n_outs, n_noises;
  bool wide;             // compute in float64
  bool unit;             // ndim == 1 and every stride is 1
  bool per_sample_step;  // step has `batch` entries, else one
  int32_t ndim;          // collapsed dimensions of a sample, outermost first; always >= 1
  int64_t size[kDims];   // their sizes; product is numel
  int64_t batch, numel;  // samples, elements of a sample; both may be folded when nothing depends on the sample
  int64_t chunks;        // counters that one draw of a sample takes: ceil(numel / normals per counter)
  const double* table;   // (rows, 48)
  int64_t rows;
  const int64_t* step;
  const uint64_t* key;  // (batch, 2): seed, offset; null without keyed noise
};

// What an update writes beside its outputs.
struct Beside {
  void* time;      // (samples,): what the network is told after the row, or null
  int64_t* clock;  // {steps made, scratch}, or null; step may be its first number
  int64_t samples;
  bool wide;  // time is float64, else float32
};

// The time of sample b; NaN for a step out of range.
FS_HD void write_time(const UpdateArgs& a, const Beside& beside, int64_t b) {
  const int64_t step = a.step[a.per_sample_step ? b : 0];
  const double time = step >= 0 && step < a.rows ? a.table[step * kColumns + kTime] : static_cast<double>(NAN);
  if (beside.wide)
    static_cast<double*>(beside.time)[b] = time;
  else
    static_cast<float*>(beside.time)[b] = static_cast<float>(time);
}

}  // namespace fs
