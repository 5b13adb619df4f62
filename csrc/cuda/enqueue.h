// Launches of kernels on a stream, with their errors, for the ops that reduce.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fs::gpu {

struct Enqueue {
  const char* op;
  CUstream_st* stream;

  void check(cudaError_t error) const {
    if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
  }

  void clear(void* memory, int64_t bytes) const { check(cudaMemsetAsync(memory, 0, bytes, stream)); }

  void allow(const void* kernel, int64_t shared) const {
    constexpr int64_t kWithoutAsking = 40 * 1024;  // beside what kernels declare
    if (shared > kWithoutAsking)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }

  void fits(int64_t blocks) const {
    if (blocks > 0x7fffffff) throw std::runtime_error(std::string(op) + ": too many elements for one launch");
  }

  template <class... P, class... A>
  void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared, const A&... arguments) const {
    fits(blocks);
    allow(reinterpret_cast<const void*>(kernel), shared);
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
    check(cudaGetLastError());
  }

  // The same with `cluster` blocks next to one another that see each other's shared memory.
  template <class... P, class... A>
  void launch_clusters(void (*kernel)(P...), int64_t blocks, int cluster, int threads, int64_t shared,
                       const A&... arguments) const {
    fits(blocks);
    allow(reinterpret_cast<const void*>(kernel), shared);
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = cluster, together.val.clusterDim.y = together.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = static_cast<unsigned>(blocks), config.blockDim = threads;
    config.dynamicSmemBytes = shared, config.stream = stream;
    config.attrs = &together, config.numAttrs = cluster > 1 ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, arguments...));
  }
};

template <class Args>
void check_sizes(const Args& a, const char* op) {
  for (int d = 1; d < a.ndim; ++d)
    if (a.size[d] >> 32) throw std::runtime_error(std::string(op) + ": 2^32 elements or more in an inner dimension");
}

}  // namespace fs::gpu
