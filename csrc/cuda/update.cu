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

// Threads that a processor must hold: 1024 leave them 64 registers, 768 leave 80 for 16 sums, 512 leave 128 for
// float64, whose normals call log, cos and sin.
template <class S, class T, int kO>
constexpr int kThreads = sizeof(S) == 8         ? 512
                         : T::kPiece * kO == 16 ? 768
                                                : 1024;

// Programmatic dependent launch: blocks may be resident while the kernel before still runs. Nothing is read or written
// until it is through, and the kernel after this one may come as early.
__device__ __forceinline__ void meet_neighbours() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
__global__ void __launch_bounds__(kMostThreads, kThreads<S, T, kO> / kMostThreads)
    update_kernel(const __grid_constant__ UpdateArgs args, const __grid_constant__ Layout layout,
                  const __grid_constant__ Beside beside) {
  extern __shared__ __align__(16) char shared[];
  Staged<S>* rows = reinterpret_cast<Staged<S>*>(shared);
  if (layout.early) meet_neighbours();
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
  const Variant& variant = variant_of(a);
  const int64_t staged_bytes = a.wide ? sizeof(Staged<double>) : sizeof(Staged<float>);
  const int64_t pieces = (a.numel + choice.elements - 1) / choice.elements;
  const Layout layout = lay_out(a, pieces, staged_bytes, processors_of(device), variant);
  if (layout.blocks > 0x7fffffff) throw std::runtime_error("fastsample::update: too many samples for one launch");
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(layout.blocks), config.blockDim = layout.threads;
  config.dynamicSmemBytes = layout.rows * staged_bytes, config.stream = stream;
  config.attrs = &early, config.numAttrs = layout.early;
  check(cudaLaunchKernelEx(&config, choice.kernel, a, layout, beside), "launch failed");
}

}  // namespace fs

// For benchmarks.variants alone, through ctypes: this variant in the place of the chosen one in the whole process;
// threads == 0 ends that. `early` needs sm_90. Returns 0 if there is no such variant.
extern "C" __attribute__((visibility("default"))) int fastsample_force_variant(int threads, int fill, int turns,
                                                                               int early) {
  using namespace fs::gpu;
  const Variant wish = {threads, fill, turns, early != 0};
  if (threads != 0 && !exists(wish)) return 0;
  forced_variant() = wish;
  return 1;
}
