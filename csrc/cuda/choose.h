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

// With noise made from keys; or given, or none.
template <class Kernels, class T, int kK, int kO>
Choice<Kernels> by_noise(const UpdateArgs& a) {
  return {a.key != nullptr ? Kernels::template of<float, T, kK, kO, kKeyed, true>()
                           : Kernels::template of<float, T, kK, kO, kGiven, true>(),
          T::kPiece};
}

// One dtype, all laid out alike. 16-bit tensors move 16 bytes at once as long as the registers last: `wide`, with at
// most 4 terms and 2 outputs.
template <class Kernels, DType kType>
Choice<Kernels> alike_kernel(const UpdateArgs& a, bool wide) {
  constexpr int kMost = kType == DType::kF32 ? 4 : 8;
  if (kType != DType::kF32 && !wide) return by_noise<Kernels, Alike<All<kType, 4>>, kTerms, kOutputs>(a);
  if (a.n_terms <= kAtOnce && a.n_outs == 1) return by_noise<Kernels, Alike<All<kType, kMost>>, kAtOnce, 1>(a);
  if constexpr (kMost == 8) return by_noise<Kernels, Alike<All<kType, kMost>>, kAtOnce, 2>(a);
  return by_noise<Kernels, Alike<All<kType, 4>>, kTerms, kOutputs>(a);
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
  const Operand& first = a.outs[0];
  const DType type = first.dtype;
  bool same = true, alike = true, doubles = false;
  each_operand(a, [&](const Operand& o) {
    same &= o.dtype == type;
    alike &= o.batch_stride == first.batch_stride || a.batch == 1;
    doubles |= o.dtype == DType::kF64;
  });
  const auto in_pieces = [&](int elements) {
    bool whole = a.unit && a.numel % elements == 0 && !doubles;
    each_operand(a, [&](const Operand& o) {
      whole &=
          reinterpret_cast<uintptr_t>(o.data) % (elements * size_of(o.dtype)) == 0 && o.batch_stride % elements == 0;
    });
    return whole;
  };
  constexpr int kChunk = Chunk<float>::kSize;
  if (a.wide) return {Kernels::template of<double, Mixed<1>, kTerms, kOutputs, kKeyed, false>(), Chunk<double>::kSize};
  if (!in_pieces(kChunk)) return {Kernels::template of<float, Mixed<1>, kTerms, kOutputs, kKeyed, false>(), kChunk};
  if (!alike) return by_noise<Kernels, Mixed<kChunk>, kTerms, kOutputs>(a);
  if (!same) return by_noise<Kernels, Alike<Mixed<kChunk>>, kTerms, kOutputs>(a);
  const bool wide = a.n_terms <= kAtOnce && a.n_outs <= 2 && in_pieces(2 * kChunk);
  if (type == DType::kF32) return alike_kernel<Kernels, DType::kF32>(a, wide);
  if (type == DType::kF16) return alike_kernel<Kernels, DType::kF16>(a, wide);
  return alike_kernel<Kernels, DType::kBF16>(a, wide);
}

}  // namespace fs::gpu
