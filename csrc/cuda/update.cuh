// The body of the update kernel: what one thread does, as host and device functions. Row and order: docs/row.md.
#pragma once
#include "../core/normal.h"
#include "../core/row.h"
#include "storage.cuh"

namespace fs::gpu {

constexpr int kBlock = 128;
constexpr int kStagedBytes = 48 * 1024;  // shared memory that a block has without asking

enum Noise { kNone, kKeyed, kGiven };

// A row as a block keeps it in shared memory. 208 bytes in float32: rows of neighbouring samples hit different banks.
template <class S>
struct alignas(16) Staged {
  Row<S> row;
  uint64_t skip[kNoises];  // counters before the draw of noise r
};

// How threads are laid over the samples. A piece is what a thread takes at once: kVector elements, or one chunk.
struct Layout {
  int64_t pieces;   // per sample
  int64_t tiles;    // blocks that share a sample; each strides by tiles * kBlock pieces
  int32_t samples;  // per block; 1 when tiles > 1
  int32_t rows;     // staged per block: 1, or one for each sample
  int64_t blocks;
};

inline Layout lay_out(const UpdateArgs& a, int64_t pieces, int64_t staged_bytes, int processors) {
  const auto ceil_div = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  Layout l;
  l.pieces = pieces;
  int64_t samples = pieces >= kBlock ? 1 : kBlock / pieces;
  if (a.per_sample_step && samples > kStagedBytes / staged_bytes) samples = kStagedBytes / staged_bytes;
  l.samples = static_cast<int32_t>(samples);
  l.rows = a.per_sample_step ? l.samples : 1;
  const int64_t groups = ceil_div(a.batch, samples), all = ceil_div(pieces, kBlock);
  // Enough blocks to fill every processor twice, and then up to 8 pieces a thread, so that staging a row is paid once.
  const int64_t wanted = ceil_div(16 * static_cast<int64_t>(processors), groups), fewest = ceil_div(all, 8);
  l.tiles = wanted > all ? all : wanted > fewest ? wanted : fewest;
  l.blocks = groups * l.tiles;
  return l;
}

// Entry `column` of staged row `i`. Columns of absent terms, outputs and noises become zero, so that the body needs no
// counts. A step out of range becomes a row that turns every output into NaN and reads nothing.
template <class S>
FS_HD void stage(const UpdateArgs& a, int64_t sample, int column, Staged<S>& to) {
  const int64_t step = a.step[a.per_sample_step ? sample : 0];
  const bool good = step >= 0 && step < a.rows;
  const int group = column >> 2, lane = column & 3;
  const bool present = lane <= a.n_outs && (group < kTerms ? group < a.n_terms : group <= 8 + a.n_noises);
  const bool limit = column == kLo || column == kHi;
  double value = 0;
  if (good && (present || limit || column >= kDraw)) value = a.table[step * kColumns + column];
  if (!good && group == 8 && !limit) value = static_cast<double>(NAN);
  if (column >= kDraw && column < kDraw + kNoises)
    to.skip[column - kDraw] = static_cast<uint64_t>(value) * static_cast<uint64_t>(a.chunks);
  else
    to.row.v[column] = static_cast<S>(value);
}

// The four weights of a group with one load.
template <class S>
struct alignas(16) Four {
  S v[4];
};

template <class S>
FS_HD Four<S> four(const Staged<S>& staged, int group) {
  Four<S> w;
  std::memcpy(&w, __builtin_assume_aligned(staged.row.v + 4 * group, 16), sizeof w);
  return w;
}

// kL elements of kO outputs. x(j, lanes) fetches term j, xi(r, lanes) noise r; neither is asked for if it has no
// weight. The order is that of predict() and combine() in core/row.h, with D and all outputs in one pass over the
// terms.
template <class S, int kL, int kK, int kO, int kR, class X, class Xi>
FS_HD void combine_all(const Staged<S>& staged, uint32_t mask, X x, Xi xi, S (&acc)[kO][kL]) {
  S d[kL];
  FS_UNROLL
  for (int i = 0; i < kL; ++i) {
    d[i] = S(0);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) acc[k][i] = S(0);
  }
  FS_UNROLL
  for (int j = 0; j < kK; ++j) {
    if (!(mask >> j & 1)) continue;
    S lanes[kL];
    x(j, lanes);
    const Four<S> w = four(staged, j);
    accumulate<S, S, kL>(w.v[0], lanes, d);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) accumulate<S, S, kL>(w.v[1 + k], lanes, acc[k]);
  }
  if (mask >> 8 & 1) {
    const Four<S> w = four(staged, 8);
    const S hi = staged.row.v[kHi];
    FS_UNROLL
    for (int i = 0; i < kL; ++i) d[i] = clamp(d[i], w.v[0], hi);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) accumulate<S, S, kL>(w.v[1 + k], d, acc[k]);
  }
#if defined(__CUDACC__)
#pragma unroll 1  // one copy of Philox
#endif
  for (int r = 0; r < kR; ++r) {
    if (!(mask >> (9 + r) & 1)) continue;
    S lanes[kL];
    xi(r, lanes);
    const Four<S> w = four(staged, 9 + r);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) accumulate<S, S, kL>(w.v[1 + k], lanes, acc[k]);
  }
}

// Storage of an instantiation: one dtype for all tensors, or each operand's own.
struct Mixed {
  static constexpr bool kMixed = true;
  static constexpr int kPiece = 0;  // one chunk
  FS_HD static DType of(const Operand& o) { return o.dtype; }
};
template <DType kType>
struct All {
  static constexpr bool kMixed = false;
  static constexpr int kPiece = kType == DType::kF32 ? 4 : 8;  // 16 bytes
  FS_HD static DType of(const Operand&) { return kType; }
};

template <class S, class T>
constexpr int kPieceOf = T::kPiece ? T::kPiece : Chunk<S>::kSize;

// The vector path: unit strides, aligned, whole pieces. All loads are issued before the first is used.
template <class S, class T, int kK, int kO, Noise kNoise>
FS_HD void update_vector(const UpdateArgs& a, const Staged<S>& staged, uint32_t mask, int64_t sample, int64_t piece) {
  constexpr int kE = kPieceOf<S, T>, kL = Chunk<S>::kSize, kR = kNoise == kNone ? 0 : kNoises;
  Words terms[kK], given[kNoises];
  FS_UNROLL
  for (int j = 0; j < kK; ++j)
    if (mask >> j & 1)
      load<S, kE>(a.terms[j].data, T::of(a.terms[j]), sample * a.terms[j].batch_stride + piece * kE, terms[j]);
  uint64_t seed = 0, counter = 0;
  if constexpr (kNoise == kGiven) {
    FS_UNROLL
    for (int r = 0; r < kNoises; ++r)
      if (mask >> (9 + r) & 1)
        load<S, kE>(a.noise[r].data, T::of(a.noise[r]), sample * a.noise[r].batch_stride + piece * kE, given[r]);
  }
  if constexpr (kNoise == kKeyed) {
    seed = a.key[2 * sample];
    counter = a.key[2 * sample + 1] + static_cast<uint64_t>(piece * (kE / kL));
  }
  Words outs[kO];
  FS_UNROLL
  for (int g = 0; g < kE / kL; ++g) {
    const auto x = [&](int j, S(&lanes)[kL]) {
      FS_UNROLL
      for (int i = 0; i < kL; ++i) lanes[i] = get<S, kE>(terms[j], T::of(a.terms[j]), g * kL + i);
    };
    const auto xi = [&](int r, S(&lanes)[kL]) {
      if constexpr (kNoise == kKeyed) normals_at(seed, counter + g + staged.skip[r], lanes);
      if constexpr (kNoise == kGiven) {
        const Words words = r == 0 ? given[0] : given[1];
        FS_UNROLL
        for (int i = 0; i < kL; ++i) lanes[i] = get<S, kE>(words, T::of(a.noise[r]), g * kL + i);
      }
    };
    S acc[kO][kL];
    combine_all<S, kL, kK, kO, kR>(staged, mask, x, xi, acc);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) {
      FS_UNROLL
      for (int i = 0; i < kL; ++i) put<S>(outs[k], T::of(a.outs[k]), g * kL + i, acc[k][i]);
    }
  }
  FS_UNROLL
  for (int k = 0; k < kO; ++k)
    if (k < a.n_outs)
      store<S, kE>(a.outs[k].data, T::of(a.outs[k]), sample * a.outs[k].batch_stride + piece * kE, outs[k]);
}

// Where a logical element of a sample lies in an operand.
struct Place {
  int64_t at[kDims];
};

FS_HD Place place_of(const UpdateArgs& a, int64_t i) {
  Place p;
  uint64_t rest = static_cast<uint64_t>(i);
  FS_UNROLL
  for (int dim = kDims - 1; dim > 0; --dim) {
    p.at[dim] = 0;
    if (dim >= a.ndim) continue;
    const uint64_t size = static_cast<uint64_t>(a.size[dim]);
    if ((rest | size) >> 32 == 0) {  // the short division where it will do
      const uint32_t quotient = static_cast<uint32_t>(rest) / static_cast<uint32_t>(size);
      p.at[dim] = static_cast<uint32_t>(rest) - quotient * static_cast<uint32_t>(size);
      rest = quotient;
    } else {
      p.at[dim] = static_cast<int64_t>(rest % size);
      rest /= size;
    }
  }
  p.at[0] = static_cast<int64_t>(rest);
  return p;
}

FS_HD int64_t offset_in(const Operand& o, const Place& p, int ndim, int64_t sample) {
  int64_t at = sample * o.batch_stride;
  FS_UNROLL
  for (int dim = 0; dim < kDims; ++dim)
    if (dim < ndim) at += p.at[dim] * o.stride[dim];
  return at;
}

// The general path: any strides, any length; a piece is one chunk, element after element.
template <class S, class T, int kK, int kO, Noise kNoise>
FS_HD void update_strided(const UpdateArgs& a, const Staged<S>& staged, uint32_t mask, int64_t sample, int64_t piece) {
  constexpr int kC = Chunk<S>::kSize;
  S z[kNoises][kC] = {};
  if (a.key != nullptr) {
    FS_UNROLL
    for (int r = 0; r < kNoises; ++r)
      if (mask >> (9 + r) & 1)
        normals_at(a.key[2 * sample], a.key[2 * sample + 1] + staged.skip[r] + static_cast<uint64_t>(piece), z[r]);
  }
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int e = 0; e < kC; ++e) {
    if (piece * kC + e >= a.numel) return;
    const Place place = place_of(a, piece * kC + e);
    Words terms[kK], given[kNoises];
    FS_UNROLL
    for (int j = 0; j < kK; ++j)
      if (mask >> j & 1)
        load<S, 1>(a.terms[j].data, T::of(a.terms[j]), offset_in(a.terms[j], place, a.ndim, sample), terms[j]);
    FS_UNROLL
    for (int r = 0; r < kNoises; ++r)
      if (a.key == nullptr && (mask >> (9 + r) & 1))
        load<S, 1>(a.noise[r].data, T::of(a.noise[r]), offset_in(a.noise[r], place, a.ndim, sample), given[r]);
    const auto x = [&](int j, S(&lanes)[1]) { lanes[0] = get<S, 1>(terms[j], T::of(a.terms[j]), 0); };
    const auto xi = [&](int r, S(&lanes)[1]) {
      lanes[0] = r == 0 ? z[0][0] : z[1][0];
      FS_UNROLL
      for (int i = 1; i < kC; ++i)
        if (e == i) lanes[0] = r == 0 ? z[0][i] : z[1][i];
      if (a.key == nullptr) lanes[0] = get<S, 1>(r == 0 ? given[0] : given[1], T::of(a.noise[r]), 0);
    };
    S acc[kO][1];
    combine_all<S, 1, kK, kO, kNoises>(staged, mask, x, xi, acc);
    FS_UNROLL
    for (int k = 0; k < kO; ++k) {
      if (k >= a.n_outs) continue;
      Words out;
      put<S>(out, T::of(a.outs[k]), 0, acc[k][0]);
      store<S, 1>(a.outs[k].data, T::of(a.outs[k]), offset_in(a.outs[k], place, a.ndim, sample), out);
    }
  }
}

// One thread of a block after the rows are staged.
template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
FS_HD void update_thread(const UpdateArgs& a, const Layout& l, const Staged<S>* rows, int64_t block, int thread) {
  const int64_t group = l.tiles == 1 ? block : block / l.tiles, tile = block - group * l.tiles;
  const int width = l.pieces < kBlock ? static_cast<int>(l.pieces) : kBlock;  // threads of a sample
  const int local = thread / width;
  const int64_t sample = group * l.samples + local;
  if (local >= l.samples || sample >= a.batch) return;
  const Staged<S>& staged = rows[l.rows == 1 ? 0 : local];
  const uint32_t mask = needs<S>(staged.row.v, kK, kO, !kVector || kNoise != kNone ? kNoises : 0);
  for (int64_t piece = tile * kBlock + (thread - local * width); piece < l.pieces; piece += l.tiles * kBlock) {
    if constexpr (kVector)
      update_vector<S, T, kK, kO, kNoise>(a, staged, mask, sample, piece);
    else
      update_strided<S, T, kK, kO, kNoise>(a, staged, mask, sample, piece);
  }
}

// Entry `index` of all that a block stages.
template <class S>
FS_HD void stage_entry(const UpdateArgs& a, const Layout& l, Staged<S>* rows, int64_t block, int index) {
  const int64_t group = l.tiles == 1 ? block : block / l.tiles;
  const int row = index / kColumns;
  const int64_t sample = group * l.samples + row;
  if (sample < a.batch) stage(a, sample, index - row * kColumns, rows[row]);
}

}  // namespace fs::gpu
