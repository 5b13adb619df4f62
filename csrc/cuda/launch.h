// Host entry of the CUDA kernels. Needs no CUDA header.
#pragma once
#include "../brownian_args.h"
#include "../metropolis_args.h"
#include "../reduce_args.h"

struct CUstream_st;  // *cudaStream_t

namespace fs {

// Enqueues one update on `stream` of the current device. Throws std::runtime_error if the launch is refused.
void launch_update(const UpdateArgs& args, const Beside& beside, int device, CUstream_st* stream);

// The same for one query of a Brownian tree.
void launch_brownian(const BrownianArgs& args, CUstream_st* stream);

// The rows of thresholding and of guidance rescale. `memory` has as many bytes as the function before it says.
int64_t threshold_workspace(const ThresholdArgs& args, int device);
void launch_threshold(const ThresholdArgs& args, void* memory, int device, CUstream_st* stream);
int64_t rescale_workspace(const RescaleArgs& args);
void launch_rescale(const RescaleArgs& args, void* memory, CUstream_st* stream);

// One inner iteration of Metropolis-adjusted chains.
int64_t metropolis_workspace(const MetropolisArgs& args, int device);
void launch_metropolis(const MetropolisArgs& args, void* memory, int device, CUstream_st* stream);

}  // namespace fs
