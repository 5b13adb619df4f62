// fastsample::update on CUDA: the kernel, its instantiations, and the choice among them.
#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "update.cuh"

namespace fs {
namespace gpu {
namespace {

// 8 blocks of 128 threads: at most 64 registers.
template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
__global__ void __launch_bounds__(kBlock, 8)
    update_kernel(const __grid_constant__ UpdateArgs args, const __grid_constant__ Layout layout) {
  extern __shared__ __align__(16) char shared[];
  Staged<S>* rows = reinterpret_cast<Staged<S>*>(shared);
  for (int i = threadIdx.x; i < layout.rows * kColumns; i += kBlock) stage_entry(args, layout, rows, blockIdx.x, i);
  __syncthreads();
  update_thread<S, T, kK, kO, kNoise, kVector>(args, layout, rows, blockIdx.x, threadIdx.x);
}

using Kernel = void (*)(UpdateArgs, Layout);

template <class S, class T, int kK, int kO>
constexpr Kernel kByNoise[] = {
    update_kernel<S, T, kK, kO, kNone, true>,
    update_kernel<S, T, kK, kO, kKeyed, true>,
    update_kernel<S, T, kK, kO, kGiven, true>,
};

template <class T>
Kernel by_counts(const UpdateArgs& a, Noise noise) {
  const bool few = a.n_terms <= 4, one = a.n_outs == 1;
  return few ? (one ? kByNoise<float, T, 4, 1> : kByNoise<float, T, 4, kOutputs>)[noise]
             : (one ? kByNoise<float, T, kTerms, 1> : kByNoise<float, T, kTerms, kOutputs>)[noise];
}

template <class Visit>
void each_operand(const UpdateArgs& a, Visit visit) {
  for (int k = 0; k < a.n_outs; ++k) visit(a.outs[k]);
  for (int j = 0; j < a.n_terms; ++j) visit(a.terms[j]);
  if (a.key == nullptr)
    for (int r = 0; r < a.n_noises; ++r) visit(a.noise[r]);
}

struct Choice {
  Kernel kernel;
  int elements;  // of a piece
};

Choice choose(const UpdateArgs& a) {
  const Noise noise = a.key != nullptr ? kKeyed : a.n_noises > 0 ? kGiven : kNone;
  const DType type = a.outs[0].dtype;
  bool same = true, doubles = false;
  each_operand(a, [&](const Operand& o) { same &= o.dtype == type, doubles |= o.dtype == DType::kF64; });
  const int chunk = a.wide ? Chunk<double>::kSize : Chunk<float>::kSize;
  const int elements = same && size_of(type) == 2 ? 8 : chunk;
  bool whole = a.unit && a.numel % elements == 0 && (a.wide || !doubles);
  each_operand(a, [&](const Operand& o) {
    const int64_t bytes = elements * size_of(o.dtype);
    whole &= reinterpret_cast<uintptr_t>(o.data) % bytes == 0 && o.batch_stride % elements == 0;
  });
  if (!whole)
    return {a.wide ? update_kernel<double, Mixed, kTerms, kOutputs, kKeyed, false>
                   : update_kernel<float, Mixed, kTerms, kOutputs, kKeyed, false>,
            chunk};
  if (a.wide) return {kByNoise<double, Mixed, kTerms, kOutputs>[noise], elements};
  if (!same) return {by_counts<Mixed>(a, noise), elements};
  if (type == DType::kF32) return {by_counts<All<DType::kF32>>(a, noise), elements};
  if (type == DType::kF16) return {by_counts<All<DType::kF16>>(a, noise), elements};
  return {by_counts<All<DType::kBF16>>(a, noise), elements};
}

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

void launch_update(const UpdateArgs& a, int device, CUstream_st* stream) {
  using namespace gpu;
  if (a.batch == 0 || a.numel == 0) return;
  const Choice choice = choose(a);
  const int64_t staged_bytes = a.wide ? sizeof(Staged<double>) : sizeof(Staged<float>);
  const int64_t pieces = (a.numel + choice.elements - 1) / choice.elements;
  const Layout layout = lay_out(a, pieces, staged_bytes, processors_of(device));
  if (layout.blocks > 0x7fffffff) throw std::runtime_error("fastsample::update: too many samples for one launch");
  choice.kernel<<<static_cast<unsigned>(layout.blocks), kBlock, layout.rows * staged_bytes, stream>>>(a, layout);
  check(cudaGetLastError(), "launch failed");
}

}  // namespace fs
