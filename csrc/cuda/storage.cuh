// Tensor elements to and from registers: up to 16 bytes at once, converted exactly on load and rounded once on store.
// Host and device, so that tests run the kernel's body on a CPU.
#pragma once
#include "../update_args.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fs::gpu {

// The elements one thread takes of one tensor, as they lie in memory.
struct alignas(16) Words {
  uint32_t w[4];
};

template <int kBytes>
struct alignas(kBytes) Span {
  uint32_t w[kBytes / 4];
};

// One load or store of kBytes = 2, 4, 8 or 16 at an aligned address.
template <int kBytes>
FS_HD void read(const void* p, Words& to) {
#if defined(__CUDA_ARCH__)
  if constexpr (kBytes == 2) {
    to.w[0] = *static_cast<const uint16_t*>(p);
  } else {
    const Span<kBytes> span = *static_cast<const Span<kBytes>*>(p);
    FS_UNROLL
    for (int i = 0; i < kBytes / 4; ++i) to.w[i] = span.w[i];
  }
#else
  std::memcpy(&to, p, kBytes);
#endif
}

template <int kBytes>
FS_HD void write(void* p, const Words& from) {
#if defined(__CUDA_ARCH__)
  if constexpr (kBytes == 2) {
    *static_cast<uint16_t*>(p) = static_cast<uint16_t>(from.w[0]);
  } else {
    Span<kBytes> span;
    FS_UNROLL
    for (int i = 0; i < kBytes / 4; ++i) span.w[i] = from.w[i];
    *static_cast<Span<kBytes>*>(p) = span;
  }
#else
  std::memcpy(p, &from, kBytes);
#endif
}

FS_HD float from_half(uint16_t h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h));
#else
  const uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));  // exact, subnormals too
#endif
}

FS_HD uint16_t to_half(float x) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(0x7fffu);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u)  // below 2^-14: adding 0.5 leaves the rounded subnormal in the low bits
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
#endif
}

FS_HD uint16_t to_bfloat(float x) {
#if defined(__CUDA_ARCH__)
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(0x7fffu);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
}

FS_HD double double_of(uint32_t lo, uint32_t hi) {
  const uint64_t u = static_cast<uint64_t>(hi) << 32 | lo;
  double x;
  std::memcpy(&x, &u, 8);
  return x;
}

// Whether kCount elements of float64 may come up: 32 bytes are more than Words hold, and only given noise can be
// float64 when the arithmetic is not.
template <class S, int kCount>
constexpr bool kTakesDouble = sizeof(S) == 8 || kCount == 1;

// Element `at` of kCount in the words. `type` is a constant after inlining unless operands differ in dtype.
template <class S, int kCount>
FS_HD S get(const Words& words, DType type, int at) {
  if (type == DType::kF32) return S(float_of(words.w[at & 3]));
  if constexpr (kTakesDouble<S, kCount>)
    if (type == DType::kF64) return static_cast<S>(double_of(words.w[2 * at & 3], words.w[(2 * at + 1) & 3]));
  const uint32_t pair = words.w[at >> 1 & 3];
  if (type == DType::kBF16) return S(float_of(at & 1 ? pair & 0xffff0000u : pair << 16));
  return S(from_half(static_cast<uint16_t>(at & 1 ? pair >> 16 : pair)));
}

// All kCount elements. The dtype is asked once, not for every element.
template <class S, int kCount>
FS_HD void unpack(const Words& words, DType type, S (&x)[kCount]) {
  const auto all = [&](DType known) {
    FS_UNROLL
    for (int i = 0; i < kCount; ++i) x[i] = get<S, kCount>(words, known, i);
  };
  if (type == DType::kF32) return all(DType::kF32);
  if (type == DType::kBF16) return all(DType::kBF16);
  if constexpr (kTakesDouble<S, kCount>)
    if (type == DType::kF64) return all(DType::kF64);
  all(DType::kF16);
}

FS_HD uint32_t to_pair(DType type, float a, float b) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  if (type == DType::kBF16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    std::memcpy(&pair, &v, 4);
  } else {
    const __half2 v = __floats2half2_rn(a, b);
    std::memcpy(&pair, &v, 4);
  }
  return pair;
#else
  return type == DType::kBF16 ? to_bfloat(a) | static_cast<uint32_t>(to_bfloat(b)) << 16
                              : to_half(a) | static_cast<uint32_t>(to_half(b)) << 16;
#endif
}

// kL elements from element `at` of the words on; `at` is even.
template <class S, int kL>
FS_HD void put(Words& words, DType type, int at, const S (&x)[kL]) {
  FS_UNROLL
  for (int i = 0; i < kL; ++i) {
    if (type == DType::kF32) {
      words.w[(at + i) & 3] = bits_of(static_cast<float>(x[i]));
    } else if (sizeof(S) == 8 && type == DType::kF64) {
      uint64_t u;
      const double wide = x[i];
      std::memcpy(&u, &wide, 8);
      words.w[2 * (at + i) & 3] = static_cast<uint32_t>(u);
      words.w[(2 * (at + i) + 1) & 3] = static_cast<uint32_t>(u >> 32);
    } else if (i % 2 == 0) {
      words.w[(at + i) >> 1 & 3] =
          to_pair(type, static_cast<float>(x[i]), static_cast<float>(x[i + 1 < kL ? i + 1 : i]));
    }
  }
}

// kCount elements of a tensor at element offset `at`.
template <class S, int kCount>
FS_HD void load(const void* data, DType type, int64_t at, Words& to) {
  const char* p = static_cast<const char*>(data);
  if constexpr (kTakesDouble<S, kCount>)
    if (type == DType::kF64) return read<8 * kCount>(p + 8 * at, to);
  if constexpr (kCount <= 4)
    if (type == DType::kF32) return read<4 * kCount>(p + 4 * at, to);
  read<2 * kCount>(p + 2 * at, to);
}

template <class S, int kCount>
FS_HD void store(void* data, DType type, int64_t at, const Words& from) {
  char* p = static_cast<char*>(data);
  if constexpr (sizeof(S) == 8)
    if (type == DType::kF64) return write<8 * kCount>(p + 8 * at, from);
  if constexpr (kCount <= 4)
    if (type == DType::kF32) return write<4 * kCount>(p + 4 * at, from);
  write<2 * kCount>(p + 2 * at, from);
}

}  // namespace fs::gpu
