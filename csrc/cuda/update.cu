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

// 8 blocks of 128 threads: at most 64 registers; 128 for float64, whose normals call log, cos and sin.
template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
__global__ void __launch_bounds__(kBlock, sizeof(S) == 8 ? 4 : 8)
    update_kernel(const __grid_constant__ UpdateArgs args, const __grid_constant__ Layout layout) {
  extern __shared__ __align__(16) char shared[];
  Staged<S>* rows = reinterpret_cast<Staged<S>*>(shared);
  for (int i = threadIdx.x; i < layout.rows * kColumns; i += kBlock) stage_entry(args, layout, rows, blockIdx.x, i);
  __syncthreads();
  update_thread<S, T, kK, kO, kNoise, kVector>(args, layout, rows, blockIdx.x, threadIdx.x);
}

using Kernel = void (*)(UpdateArgs, Layout);

// Without and with keyed noise.
template <class T, int kK, int kO>
constexpr Kernel kByNoise[] = {update_kernel<float, T, kK, kO, kNone, true>,
                               update_kernel<float, T, kK, kO, kKeyed, true>};

// One dtype and at most 4 terms. 16-bit tensors move 16 bytes at once if there is one output; with more, the registers
// only allow 8.
template <DType kType>
Kernel uniform_kernel(const UpdateArgs& a) {
  constexpr int kMost = kType == DType::kF32 ? 4 : 8;
  return (a.n_outs == 1 ? kByNoise<All<kType, kMost>, kAtOnce, 1> : kByNoise<All<kType, 4>, kAtOnce, kOutputs>)[a.key !=
      nullptr];
}

Kernel mixed_kernel(const UpdateArgs& a) {
  return (a.n_terms <= kAtOnce ? kByNoise<Mixed<4>, kAtOnce, kOutputs> : kByNoise<Mixed<4>, kTerms, kOutputs>)[a.key !=
      nullptr];
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
  const DType type = a.outs[0].dtype;
  const bool given = a.key == nullptr && a.n_noises > 0;
  bool same = true, doubles = false;
  each_operand(a, [&](const Operand& o) { same &= o.dtype == type, doubles |= o.dtype == DType::kF64; });
  const bool mixed = !same || given || a.n_terms > kAtOnce;
  const int chunk = a.wide ? Chunk<double>::kSize : Chunk<float>::kSize;
  const int elements = !mixed && size_of(type) == 2 && a.n_outs == 1 ? 8 : chunk;
  bool whole = a.unit && a.numel % elements == 0 && !doubles;
  each_operand(a, [&](const Operand& o) {
    whole &= reinterpret_cast<uintptr_t>(o.data) % (elements * size_of(o.dtype)) == 0 && o.batch_stride % elements == 0;
  });
  if (!whole && a.wide) return {update_kernel<double, Mixed<1>, kTerms, kOutputs, kKeyed, false>, chunk};
  if (!whole) return {update_kernel<float, Mixed<1>, kTerms, kOutputs, kKeyed, false>, chunk};
  if (given) return {update_kernel<float, Mixed<4>, kTerms, kOutputs, kGiven, true>, elements};
  if (mixed) return {mixed_kernel(a), elements};
  if (type == DType::kF32) return {uniform_kernel<DType::kF32>(a), elements};
  if (type == DType::kF16) return {uniform_kernel<DType::kF16>(a), elements};
  return {uniform_kernel<DType::kBF16>(a), elements};
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
  for (int d = 1; d < a.ndim; ++d)
    if (a.size[d] >> 32) throw std::runtime_error("fastsample::update: 2^32 elements or more in an inner dimension");
  const Choice choice = choose(a);
  const int64_t staged_bytes = a.wide ? sizeof(Staged<double>) : sizeof(Staged<float>);
  const int64_t pieces = (a.numel + choice.elements - 1) / choice.elements;
  const Layout layout = lay_out(a, pieces, staged_bytes, processors_of(device));
  if (layout.blocks > 0x7fffffff) throw std::runtime_error("fastsample::update: too many samples for one launch");
  choice.kernel<<<static_cast<unsigned>(layout.blocks), kBlock, layout.rows * staged_bytes, stream>>>(a, layout);
  check(cudaGetLastError(), "launch failed");
}

}  // namespace fs
