// Host entry of the CUDA kernels. Needs no CUDA header.
#pragma once
#include "../brownian_args.h"

struct CUstream_st;  // *cudaStream_t

namespace fs {

// Enqueues one update on `stream` of the current device. Throws std::runtime_error if the launch is refused.
void launch_update(const UpdateArgs& args, int device, CUstream_st* stream);

// The same for one query of a Brownian tree.
void launch_brownian(const BrownianArgs& args, CUstream_st* stream);

}  // namespace fs
