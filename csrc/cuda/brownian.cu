// fastsample::brownian on CUDA: the kernel and its launch.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "brownian.cuh"
#include "launch.h"

namespace fs {
namespace gpu {
namespace {

// At most 64 registers; 128 for float64, whose normals call log, cos and sin.
template <class S>
__global__ void __launch_bounds__(kBlock, sizeof(S) == 8 ? 4 : 8)
    brownian_kernel(const __grid_constant__ BrownianArgs a, const __grid_constant__ NodeLayout l) {
  __shared__ StagedNode<S> nodes[kBlock];
  const int64_t sample = blockIdx.x / l.tiles, chunk = (blockIdx.x - sample * l.tiles) * kBlock + threadIdx.x;
  NodeSum<S> sum(a.key[2 * sample], a.key[2 * sample + 1] + static_cast<uint64_t>(chunk));
  for (int64_t first = 0; first == 0 || first < a.width; first += kBlock) {
    __syncthreads();
    stage_node(a, sample, first + threadIdx.x, nodes[threadIdx.x]);
    __syncthreads();
    int n = 0;
    for (; n < kBlock && !nodes[n].ends(); ++n) sum.add(nodes[n]);
    if (n < kBlock) break;  // the same in all threads
  }
  if (chunk < l.chunks) store_chunk(a, l.vector, sample, chunk, sum);
}

}  // namespace
}  // namespace gpu

void launch_brownian(const BrownianArgs& a, CUstream_st* stream) {
  using namespace gpu;
  if (a.batch == 0 || a.numel == 0) return;
  for (int d = 1; d < a.ndim; ++d)
    if (a.size[d] >> 32) throw std::runtime_error("fastsample::brownian: 2^32 elements or more in an inner dimension");
  const NodeLayout l = lay_out(a);
  if (l.blocks > 0x7fffffff) throw std::runtime_error("fastsample::brownian: too many elements for one launch");
  const auto kernel = a.wide ? brownian_kernel<double> : brownian_kernel<float>;
  kernel<<<static_cast<unsigned>(l.blocks), kBlock, 0, stream>>>(a, l);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("fastsample::brownian: launch failed: ") + cudaGetErrorString(error));
}

}  // namespace fs
