// Launches of kernels on a stream, with their errors, for the ops that reduce.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../reduce_args.h"

namespace fs::gpu {

struct Enqueue {
  const char* op;
  CUstream_st* stream;

  void check(cudaError_t error) const {
    if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
  }

  void clear(void* memory, int64_t bytes) const { check(cudaMemsetAsync(memory, 0, bytes, stream)); }

  template <class... P, class... A>
  void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared, const A&... arguments) const {
    constexpr int64_t kWithoutAsking = 40 * 1024;  // beside what kernels declare
    if (blocks > 0x7fffffff) throw std::runtime_error(std::string(op) + ": too many elements for one launch");
    if (shared > kWithoutAsking)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
    check(cudaGetLastError());
  }
};

inline void check_sizes(const ReduceArgs& a, const char* op) {
  for (int d = 1; d < a.ndim; ++d)
    if (a.size[d] >> 32) throw std::runtime_error(std::string(op) + ": 2^32 elements or more in an inner dimension");
}

}  // namespace fs::gpu
