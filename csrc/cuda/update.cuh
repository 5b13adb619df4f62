// The body of the update kernel: what one thread does, as host and device functions. Row and order: docs/row.md.
#pragma once
#include "../core/normal.h"
#include "lanes.cuh"
#include "layout.h"
#include "staged.cuh"
#include "storage.cuh"

namespace fs::gpu {

constexpr int kAtOnce = 4;  // terms whose loads are in flight together: 16 registers

#if defined(__CUDACC__)
#define FS_ROLLED _Pragma("unroll 1")
#else
#define FS_ROLLED
#endif

// Keeps the compiler from computing what depends on x, or loading from memory, before this point: hoisted out of a
// loop, the addresses and weights of all operands would cost more registers than there are.
FS_HD void pin(int64_t& x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x)::"memory");
#else
  (void)x;
#endif
}

enum Noise { kNone, kKeyed, kGiven };

// The part without noise: kL elements of kO outputs. fetch(j) is called before terms j..j+3, x(j, lanes) gives term j;
// what has no weight is not asked for. The order is that of predict() and combine() in core/row.h, with D and all
// outputs in one pass over the terms.
template <class S, int kL, int kK, int kO, class Fetch, class X>
FS_HD void combine_terms(const Staged<S>& staged, uint32_t mask, Fetch fetch, X x, S (&acc)[kO][kL]) {
  S d[kL];
  FS_UNROLL
  for (int i = 0; i < kL; ++i) {
    d[i] = S(0);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) acc[k][i] = S(0);
  }
  FS_UNROLL
  for (int j = 0; j < kK; ++j) {
    if (j > 0 && j % kAtOnce == 0 && !(mask & 0xffu >> j << j)) break;
    if (j % kAtOnce == 0) fetch(j);
    if (!(mask >> j & 1)) continue;
    S lanes[kL];
    x(j, lanes);
    const Four<S> w = four(staged, j);
    accumulate<S, S, kL>(w.v[0], lanes, d);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) accumulate<S, S, kL>(w.v[1 + k], lanes, acc[k]);
  }
  if (!(mask & kNeedsD)) return;
  const Four<S> w = four(staged, 8);
  if (mask & kLimited) {
    const S hi = staged.row.v[kHi];
    FS_UNROLL
    for (int i = 0; i < kL; ++i) d[i] = clamp(d[i], w.v[0], hi);
  }
  FS_UNROLL
  for (int k = 0; k < kO; ++k) accumulate<S, S, kL>(w.v[1 + k], d, acc[k]);
}

// Adds noise r of a group of lanes.
template <class S, int kL, int kO>
FS_HD void add_noise(const Staged<S>& staged, int r, const S (&lanes)[kL], S (&acc)[kO][kL]) {
  const Four<S> w = four(staged, 9 + r);
  FS_UNROLL
  for (int k = 0; k < kO; ++k) accumulate<S, S, kL>(w.v[1 + k], lanes, acc[k]);
}

// Storage of an instantiation: one dtype for all tensors, or each operand's own; and the elements of a piece.
template <int kElements>
struct Mixed {
  static constexpr int kPiece = kElements;
  FS_HD static DType of(const Operand& o) { return o.dtype; }
  template <class Args>
  FS_HD static int64_t offset(const Args&, const Operand& o, int64_t sample, int64_t piece) {
    return sample * o.batch_stride + piece * kElements;
  }
};
template <DType kType, int kElements>
struct All : Mixed<kElements> {
  FS_HD static DType of(const Operand&) { return kType; }
};
// T, where every tensor has the batch stride of the first output: then the offset of a piece is worked out once, and
// not, in 64 bits, for every tensor.
template <class T>
struct Alike : T {
  template <class Args>
  FS_HD static int64_t offset(const Args& a, const Operand&, int64_t sample, int64_t piece) {
    return T::offset(a, a.outs[0], sample, piece);
  }
};

// Where a logical element of a sample lies in an operand.
struct Place {
  int64_t outer;
  uint32_t at[kDims];  // at[0] is not used: the outermost dimension alone may have 2^32 elements or more
};

template <class Args>
FS_HD Place place_of(const Args& a, int64_t i) {
  Place p;
  uint64_t rest = static_cast<uint64_t>(i);
  FS_UNROLL
  for (int dim = kDims - 1; dim > 0; --dim) {
    p.at[dim] = 0;
    if (dim >= a.ndim) continue;
    const uint32_t size = static_cast<uint32_t>(a.size[dim]);
    const uint64_t quotient =
        rest >> 32 ? rest / size : static_cast<uint32_t>(rest) / size;  // mostly the short division
    p.at[dim] = static_cast<uint32_t>(rest - quotient * size);
    rest = quotient;
  }
  p.outer = static_cast<int64_t>(rest);
  return p;
}

FS_HD int64_t offset_in(const Operand& o, const Place& p, int ndim, int64_t sample) {
  int64_t at = sample * o.batch_stride + p.outer * o.stride[0];
  FS_UNROLL
  for (int dim = 1; dim < kDims; ++dim)
    if (dim < ndim) at += p.at[dim] * o.stride[dim];
  return at;
}

// Where the paths below take the terms from: the tensors of an update. T says their dtype, kE is how many elements come
// at once. took() is told of the first four terms of an element or a piece, before anything is written there.
template <class T>
struct FromTerms {
  const UpdateArgs& a;
  FS_HD DType type(int j) const { return T::of(a.terms[j]); }
  template <class S, int kE>
  FS_HD void piece(int64_t sample, int64_t piece, int j, Words& to) const {
    load<S, kE>(a.terms[j].data, type(j), T::offset(a, a.terms[j], sample, piece), to);
  }
  template <class S>
  FS_HD void element(int64_t sample, const Place& place, int, int j, Words& to) const {
    load<S, 1>(a.terms[j].data, type(j), offset_in(a.terms[j], place, a.ndim, sample), to);
  }
  template <class S, int kE, class At>
  FS_HD void took(int64_t, const At&, const Words (&)[kAtOnce]) const {}
};

// The vector path: unit strides, aligned, whole pieces. The loads of four terms, and of a given noise, are issued
// before the first is used. A piece of more than one chunk is taken as a whole, so that a weight is fetched and tested
// once.
template <class S, class T, int kK, int kO, Noise kNoise, class Args, class From>
FS_HD void update_vector(const Args& a, const From& from, const Staged<S>& staged, uint32_t mask, int64_t sample,
                         int64_t piece) {
  constexpr int kE = T::kPiece, kC = Chunk<S>::kSize, kG = kE / kC;
  pin(sample);
  Words terms[kAtOnce], given;
  const auto fetch_noise = [&](const Operand& o) {
    load<S, kE>(o.data, T::of(o), T::offset(a, o, sample, piece), given);
  };
  if (kNoise == kGiven && mask & kNeedsNoise) fetch_noise(a.noise[0]);
  const auto fetch = [&](int first) {
    FS_UNROLL
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j < kK && (mask >> (first + j) & 1)) from.template piece<S, kE>(sample, piece, first + j, terms[j]);
    if (first == 0) from.template took<S, kE>(sample, piece, terms);
  };
  const auto x = [&](int j, S(&lanes)[kE]) { unpack<S, kE>(terms[j % kAtOnce], from.type(j), lanes); };
  S acc[kO][kE];
  combine_terms<S, kE, kK, kO>(staged, mask, fetch, x, acc);
  FS_ROLLED  // one copy of Philox; ends after the last noise that has a weight
      for (int r = 0; kNoise != kNone && (mask >> (9 + r) & 3); ++r) {
    if (!(mask & kNeedsNoise << r)) continue;
    S xi[kE];
    if constexpr (kNoise == kKeyed) {
      Floats<kG> z[4];
      const uint64_t seed = a.key[2 * sample], offset = a.key[2 * sample + 1];
      normals_in_a_row<kG>(seed, offset + staged.skip[r] + static_cast<uint64_t>(piece * kG), z);
      FS_UNROLL
      for (int i = 0; i < kE; ++i) xi[i] = z[i % kC].v[i / kC];
    }
    if constexpr (kNoise == kGiven) {
      if (r > 0) fetch_noise(a.noise[r]);
      unpack<S, kE>(given, T::of(a.noise[r]), xi);
    }
    add_noise<S, kE, kO>(staged, r, xi, acc);
  }
  FS_UNROLL
  for (int k = 0; k < kO; ++k) {
    const Operand& out = a.outs[k];
    if (k >= a.n_outs) continue;
    Words words;
    put<S, kE>(words, T::of(out), 0, acc[k]);
    store<S, kE>(out.data, T::of(out), T::offset(a, out, sample, piece), words);
  }
}

// The general path: any strides, any length, any dtypes; a piece is one chunk, element after element.
template <class S, int kK, int kO, class Args, class From>
FS_HD void update_strided(const Args& a, const From& from, const Staged<S>& staged, uint32_t mask, int64_t sample,
                          int64_t piece) {
  constexpr int kC = Chunk<S>::kSize;
  S z[kNoises][kC] = {};
  FS_UNROLL
  for (int r = 0; r < kNoises; ++r)
    if (a.key != nullptr && (mask & kNeedsNoise << r))
      normals_at(a.key[2 * sample], a.key[2 * sample + 1] + staged.skip[r] + static_cast<uint64_t>(piece), z[r]);
  FS_ROLLED
  for (int e = 0; e < kC; ++e) {
    if (piece * kC + e >= a.numel) return;
    pin(sample);
    const Place place = place_of(a, piece * kC + e);
    Words terms[kAtOnce];
    const auto fetch = [&](int first) {
      FS_UNROLL
      for (int j = 0; j < kAtOnce; ++j)
        if (first + j < kK && (mask >> (first + j) & 1))
          from.template element<S>(sample, place, e, first + j, terms[j]);
      if (first == 0) from.template took<S, 1>(sample, place, terms);
    };
    const auto x = [&](int j, S(&lanes)[1]) { lanes[0] = get<S, 1>(terms[j % kAtOnce], from.type(j), 0); };
    S acc[kO][1];
    combine_terms<S, 1, kK, kO>(staged, mask, fetch, x, acc);
    FS_ROLLED
    for (int r = 0; r < kNoises; ++r) {
      if (!(mask & kNeedsNoise << r)) continue;
      S xi[1] = {r == 0 ? z[0][0] : z[1][0]};
      if (a.key == nullptr) {
        const Operand& noise = a.noise[r];
        Words words;
        load<S, 1>(noise.data, noise.dtype, offset_in(noise, place, a.ndim, sample), words);
        xi[0] = get<S, 1>(words, noise.dtype, 0);
      }
      add_noise<S, 1, kO>(staged, r, xi, acc);
    }
    FS_UNROLL
    for (int k = 0; k < kO; ++k) {
      const Operand& out = a.outs[k];
      if (k >= a.n_outs) continue;
      Words words;
      put<S, 1>(words, out.dtype, 0, acc[k]);
      store<S, 1>(out.data, out.dtype, offset_in(out, place, a.ndim, sample), words);
    }
    FS_UNROLL
    for (int r = 0; r < kNoises; ++r) {  // the next normal moves to the front
      FS_UNROLL
      for (int i = 0; i + 1 < kC; ++i) z[r][i] = z[r][i + 1];
    }
  }
}

// One thread of a block after the rows are staged.
template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
FS_HD void update_thread(const UpdateArgs& a, const Layout& l, const Staged<S>* rows, int64_t block, int thread) {
  const int64_t group = group_of(l, block), tile = block - group * l.tiles;
  const int width = l.pieces < l.threads ? static_cast<int>(l.pieces) : l.threads;  // threads of a sample
  const int local = l.samples == 1 ? thread / l.threads : thread / width;
  const int64_t sample = group * l.samples + local;
  if (local >= l.samples || sample >= a.batch) return;
  const Staged<S>& staged = rows[l.rows == 1 ? 0 : local];
  const uint32_t mask = mask_of<S, kK, kO, kNoise == kNone ? 0 : kNoises>(staged);
  for (int64_t piece = tile * l.threads + (thread - local * width); piece < l.pieces; piece += l.stride) {
    if constexpr (kVector)
      update_vector<S, T, kK, kO, kNoise>(a, FromTerms<T>{a}, staged, mask, sample, piece);
    else
      update_strided<S, kK, kO>(a, FromTerms<T>{a}, staged, mask, sample, piece);
  }
}

// Entry `index` of all that a block stages.
template <class S>
FS_HD void stage_entry(const UpdateArgs& a, const Layout& l, Staged<S>* rows, int64_t block, int index) {
  const int64_t group = group_of(l, block);
  const int row = index / kColumns;
  const int64_t sample = group * l.samples + row;
  if (sample < a.batch) stage(a, a.n_terms, kColumns, sample, index - row * kColumns, rows[row]);
}

}  // namespace fs::gpu
