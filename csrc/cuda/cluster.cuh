// Thread blocks that see each other's shared memory (sm_90 and later), and copies into shared memory that hold no
// registers while they are under way (sm_80 and later). tests/cuda_host.h has the same names for the host.
#pragma once
#include "storage.cuh"

#if defined(__CUDACC__)
namespace fs::gpu {

// Threads of a warp may come one by one: the last wait is after a loop that they leave at different turns.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// A number in the shared memory of block `rank` of the cluster, at the place that `own` has in the caller's.
__device__ __forceinline__ double read_of(const double* own, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(own));
  double x;
  asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(x) : "r"(at) : "memory");
  return x;
#else
  return *own;
#endif
}

// Copies 8 or 16 bytes, aligned. The thread that asked for it sees them after copies_wait().
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(global), "n"(kBytes) : "memory");
#else
  Words words;
  read<kBytes>(global, words);
  write<kBytes>(shared, words);
#endif
}

__device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace fs::gpu
#endif
