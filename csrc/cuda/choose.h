// The instantiations of the update kernel and the choice among them. Kernels says what an instantiation is: a kernel
// here, a loop over blocks and threads in tests/cuda_body.cpp.
#pragma once
#include "update.cuh"

namespace fs::gpu {

template <class Kernels>
struct Choice {
  typename Kernels::Kernel kernel;
  int elements;  // of a piece
};

// Without or with keyed noise.
template <class Kernels, class T, int kK, int kO>
typename Kernels::Kernel by_noise(const UpdateArgs& a) {
  return a.key != nullptr ? Kernels::template of<float, T, kK, kO, kKeyed, true>()
                          : Kernels::template of<float, T, kK, kO, kNone, true>();
}

// One dtype and at most 4 terms. 16-bit tensors move 16 bytes at once if there is one output; with more, the registers
// only allow 8.
template <class Kernels, DType kType>
typename Kernels::Kernel uniform_kernel(const UpdateArgs& a) {
  constexpr int kMost = kType == DType::kF32 ? 4 : 8;
  return a.n_outs == 1 ? by_noise<Kernels, All<kType, kMost>, kAtOnce, 1>(a)
                       : by_noise<Kernels, All<kType, 4>, kAtOnce, kOutputs>(a);
}

template <class Visit>
void each_operand(const UpdateArgs& a, Visit visit) {
  for (int k = 0; k < a.n_outs; ++k) visit(a.outs[k]);
  for (int j = 0; j < a.n_terms; ++j) visit(a.terms[j]);
  if (a.key == nullptr)
    for (int r = 0; r < a.n_noises; ++r) visit(a.noise[r]);
}

template <class Kernels>
Choice<Kernels> choose(const UpdateArgs& a) {
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
  if (!whole && a.wide) return {Kernels::template of<double, Mixed<1>, kTerms, kOutputs, kKeyed, false>(), chunk};
  if (!whole) return {Kernels::template of<float, Mixed<1>, kTerms, kOutputs, kKeyed, false>(), chunk};
  if (given) return {Kernels::template of<float, Mixed<4>, kTerms, kOutputs, kGiven, true>(), elements};
  if (mixed && a.n_terms > kAtOnce) return {by_noise<Kernels, Mixed<4>, kTerms, kOutputs>(a), elements};
  if (mixed) return {by_noise<Kernels, Mixed<4>, kAtOnce, kOutputs>(a), elements};
  if (type == DType::kF32) return {uniform_kernel<Kernels, DType::kF32>(a), elements};
  if (type == DType::kF16) return {uniform_kernel<Kernels, DType::kF16>(a), elements};
  return {uniform_kernel<Kernels, DType::kBF16>(a), elements};
}

}  // namespace fs::gpu
