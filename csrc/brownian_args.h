// What a launch of `brownian` needs, as plain data.
#pragma once
#include "update_args.h"

namespace fs {

struct BrownianArgs {
  Operand out;
  bool wide;             // float64 output: float64 normals and sums
  bool unit;             // ndim == 1 and stride 1
  bool per_sample_step;  // step has `batch` entries, else one
  int32_t ndim;          // collapsed dimensions of a sample, outermost first; always >= 1
  int64_t size[kDims];
  int64_t batch, numel;
  int64_t rows, width;    // queries, and the most nodes of one
  const int64_t* nodes;   // (rows, width); a 0 ends a query
  const double* weights;  // (rows, width)
  const int64_t* step;
  const uint64_t* key;  // (batch, 2): seed, offset
};

}  // namespace fs
