// What the ops need that reduce the state to a row per sample, as plain data.
#pragma once
#include "update_args.h"

namespace fs {

struct ReduceArgs {
  Operand terms[kTerms];
  int32_t n_terms;
  bool wide;             // compute in float64
  bool unit;             // ndim == 1 and every stride is 1
  bool per_sample_step;  // step has `batch` entries, else one
  int32_t ndim;          // collapsed dimensions of a sample, outermost first; always >= 1
  int64_t size[kDims];
  int64_t batch, numel;
  const double* table;  // (table_rows, 48)
  int64_t table_rows;
  const int64_t* step;
  double* out;  // (batch, 48)
};

// The row of the table that a sample is told.
inline const double* row_of(const ReduceArgs& a, int64_t sample) {
  return a.table + a.step[a.per_sample_step ? sample : 0] * kColumns;
}

struct ThresholdArgs : ReduceArgs {
  double ratio, low, high;
};

struct RescaleArgs : ReduceArgs {
  int32_t cond, uncond;
};

}  // namespace fs
