// fastsample::rescale_ on CUDA: the launches.
#include "enqueue.h"
#include "launch.h"
#include "rescale.cuh"

namespace fs {

int64_t rescale_workspace(const RescaleArgs& a) {
  const int64_t blocks = gpu::moment_blocks(a);
  return blocks > 1 ? a.batch * blocks * static_cast<int64_t>(sizeof(Moments)) : 0;
}

void launch_rescale(const RescaleArgs& a, void* memory, CUstream_st* stream) {
  constexpr const char* kOp = "fastsample::rescale_";
  gpu::check_sizes(a, kOp);
  gpu::run_rescale(a, static_cast<Moments*>(memory), gpu::Enqueue{kOp, stream});
}

}  // namespace fs
