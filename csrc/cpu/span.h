// Elements of tensors to and from lanes and dense buffers, whatever their dtype and strides: what the loops of all ops
// share. Compiled once per instruction set (FS_ISA), like simd.h.
#pragma once
#include "../update_args.h"
#include "simd.h"

namespace fs {
namespace FS_ISA {
namespace {

struct Span {
  void* p;
  DType type;
};

template <class V>
struct Lane {
  static constexpr int kWidth = V::kWidth;
  using Scalar = float;
};
template <>
struct Lane<double> {
  static constexpr int kWidth = 1;
  using Scalar = double;
};

FS_HD int64_t bytes(DType t, int64_t n) { return n << (t == DType::kF64 ? 3 : t == DType::kF32 ? 2 : 1); }
FS_HD Span advance(const Span& s, int64_t n) { return {static_cast<char*>(s.p) + bytes(s.type, n), s.type}; }

FS_HD double scalar_load(const Span& s, int64_t i) {
  switch (s.type) {
    case DType::kF64:
      return static_cast<const double*>(s.p)[i];
    case DType::kF32:
      return static_cast<const float*>(s.p)[i];
    case DType::kBF16:
      return load_bf16(static_cast<const u16*>(s.p)[i]);
    default:
      return load_f16(static_cast<const u16*>(s.p)[i]);
  }
}

template <class S>
FS_HD void scalar_store(const Span& s, int64_t i, S x) {
  switch (s.type) {
    case DType::kF64:
      static_cast<double*>(s.p)[i] = x;
      break;
    case DType::kF32:
      static_cast<float*>(s.p)[i] = static_cast<float>(x);
      break;
    case DType::kBF16:
      static_cast<u16*>(s.p)[i] = store_bf16(static_cast<float>(x));
      break;
    default:
      static_cast<u16*>(s.p)[i] = store_f16(static_cast<float>(x));
  }
}

// What is known at compile time of the dtypes of all operands: one of them for all, or nothing.
enum class Kind { kAny, kF32, kBF16 };

template <Kind kind>
FS_HD void load(const Span& s, int64_t i, F32& x) {
  if (kind == Kind::kF32 || (kind == Kind::kAny && s.type == DType::kF32))
    x = load_f32(static_cast<const float*>(s.p) + i);
  else if (kind == Kind::kBF16 || s.type == DType::kBF16)
    x = load_bf16x(static_cast<const u16*>(s.p) + i);
  else
    x = load_f16x(static_cast<const u16*>(s.p) + i);
}
template <Kind kind>
FS_HD void store(const Span& s, int64_t i, F32 x) {
  if (kind == Kind::kF32 || (kind == Kind::kAny && s.type == DType::kF32))
    store_f32(static_cast<float*>(s.p) + i, x);
  else if (kind == Kind::kBF16 || s.type == DType::kBF16)
    store_bf16x(static_cast<u16*>(s.p) + i, x);
  else
    store_f16x(static_cast<u16*>(s.p) + i, x);
}
template <Kind>
FS_HD void load(const Span& s, int64_t i, double& x) {
  x = scalar_load(s, i);
}
template <Kind>
FS_HD void store(const Span& s, int64_t i, double x) {
  scalar_store(s, i, x);
}

// L vectors side by side; which dtype it is, is asked once.
template <Kind kind, int L, class V>
FS_HD void load_run(const Span& s, int64_t i, V (&x)[L]) {
  constexpr int kWidth = Lane<V>::kWidth;
  if (kind == Kind::kAny && s.type == DType::kF32 && sizeof(typename Lane<V>::Scalar) == 4) {
    FS_UNROLL
    for (int l = 0; l < L; ++l) load<Kind::kF32>(s, i + l * kWidth, x[l]);
  } else if (kind == Kind::kAny && s.type == DType::kBF16 && sizeof(typename Lane<V>::Scalar) == 4) {
    FS_UNROLL
    for (int l = 0; l < L; ++l) load<Kind::kBF16>(s, i + l * kWidth, x[l]);
  } else {
    FS_UNROLL
    for (int l = 0; l < L; ++l) load<kind>(s, i + l * kWidth, x[l]);
  }
}

// Offsets of the collapsed dimensions for a run of logical elements.
struct Walk {
  int64_t index[kDims];
  template <class Args>
  explicit Walk(const Args& a, int64_t i) {
    for (int d = a.ndim - 1; d > 0; --d) {
      index[d] = i % a.size[d];
      i /= a.size[d];
    }
    index[0] = i;
  }
  template <class Args>
  int64_t offset(const Args& a, const Operand& o) const {
    int64_t at = 0;
    for (int d = 0; d < a.ndim; ++d) at += index[d] * o.stride[d];
    return at;
  }
  template <class Args>
  void next_run(const Args& a, int64_t run) {
    index[a.ndim - 1] += run;
    for (int d = a.ndim - 1; d > 0 && index[d] == a.size[d]; --d) index[d] = 0, ++index[d - 1];
  }
};

// Copies n logical elements from i0 on between strided memory and a dense buffer.
template <bool Gather, class Args, class S>
void transfer(const Args& a, const Operand& o, int64_t sample, int64_t i0, int64_t n, S* buffer) {
  const Span base{static_cast<char*>(o.data) + bytes(o.dtype, sample * o.batch_stride), o.dtype};
  Walk walk(a, i0);
  const int last = a.ndim - 1;
  for (int64_t done = 0; done < n;) {
    const int64_t left = a.size[last] - walk.index[last], run = left < n - done ? left : n - done;
    const Span at = advance(base, walk.offset(a, o));
    for (int64_t i = 0; i < run; ++i) {
      if (Gather)
        buffer[done + i] = static_cast<S>(scalar_load(at, i * o.stride[last]));
      else
        scalar_store(at, i * o.stride[last], buffer[done + i]);
    }
    walk.next_run(a, run);
    done += run;
  }
}

}  // namespace
}  // namespace FS_ISA
}  // namespace fs
