// fastsample::update on CUDA: the kernel and its launch.
#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "choose.h"
#include "clock.cuh"
#include "launch.h"
#include "variants.h"

namespace fs {
namespace gpu {
namespace {

// 1024 threads on a processor: at most 64 registers; 512 and 128 for float64, whose normals call log, cos and sin.
template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
__global__ void __launch_bounds__(kMostThreads, (sizeof(S) == 8 ? 512 : 1024) / kMostThreads)
    update_kernel(const __grid_constant__ UpdateArgs args, const __grid_constant__ Layout layout,
                  const __grid_constant__ Beside beside) {
  extern __shared__ __align__(16) char shared[];
  Staged<S>* rows = reinterpret_cast<Staged<S>*>(shared);
  if (beside.time != nullptr) write_times(args, beside, blockIdx.x, gridDim.x, threadIdx.x, layout.threads);
  for (int i = threadIdx.x; i < layout.rows * kColumns; i += layout.threads)
    stage_entry(args, layout, rows, blockIdx.x, i);
  __syncthreads();
  if (beside.clock != nullptr && threadIdx.x == 0) pass_step(beside.clock, gridDim.x);
  update_thread<S, T, kK, kO, kNoise, kVector>(args, layout, rows, blockIdx.x, threadIdx.x);
}

// Where there are no elements.
__global__ void empty_kernel(const __grid_constant__ UpdateArgs args, const __grid_constant__ Beside beside) {
  if (beside.time != nullptr) write_times(args, beside, 0, 1, threadIdx.x, kMostThreads);
  __syncthreads();
  if (beside.clock != nullptr && threadIdx.x == 0) pass_step(beside.clock, 1);
}

struct OnDevice {
  using Kernel = void (*)(UpdateArgs, Layout, Beside);
  template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
  static Kernel of() {
    return update_kernel<S, T, kK, kO, kNoise, kVector>;
  }
};

void check(cudaError_t error, const char* doing) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("fastsample::update: ") + doing + ": " + cudaGetErrorString(error));
}

int processors_of(int device) {
  constexpr int kRemembered = 64;
  static std::atomic<int> known[kRemembered] = {};
  int count = device < kRemembered ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cannot read the device");
    if (device < kRemembered) known[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

}  // namespace
}  // namespace gpu

void launch_update(const UpdateArgs& a, const Beside& beside, int device, CUstream_st* stream) {
  using namespace gpu;
  if (a.batch == 0 || a.numel == 0) {
    if (beside.time == nullptr && beside.clock == nullptr) return;
    empty_kernel<<<1, kMostThreads, 0, stream>>>(a, beside);
    return check(cudaGetLastError(), "launch failed");
  }
  for (int d = 1; d < a.ndim; ++d)
    if (a.size[d] >> 32) throw std::runtime_error("fastsample::update: 2^32 elements or more in an inner dimension");
  const auto choice = choose<OnDevice>(a);
  const int64_t staged_bytes = a.wide ? sizeof(Staged<double>) : sizeof(Staged<float>);
  const int64_t pieces = (a.numel + choice.elements - 1) / choice.elements;
  const Layout layout = lay_out(a, pieces, staged_bytes, processors_of(device), variant_of(a));
  if (layout.blocks > 0x7fffffff) throw std::runtime_error("fastsample::update: too many samples for one launch");
  choice.kernel<<<static_cast<unsigned>(layout.blocks), layout.threads, layout.rows * staged_bytes, stream>>>(a, layout,
                                                                                                              beside);
  check(cudaGetLastError(), "launch failed");
}

}  // namespace fs
