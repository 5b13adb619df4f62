// A row applied to tiles of a sample: what the loops of `update` and `metropolis` share. A tile is a run of elements,
// small enough that its noise stays in the first-level cache. Compiled once per instruction set (FS_ISA).
#pragma once
#include "normals.h"
#include "span.h"
#include "stream_words.h"
#include "update.h"

namespace fs {
namespace FS_ISA {
namespace {

constexpr int kTile = kUpdateTile, kStridedTile = 512, kFollow = 256;
// In elements. From kFar on the terms do not lie in the second-level cache, from kVeryFar on in none. Measured at 2^20
// with noise: 2 to 6 % faster; at 2^24 without: 1.3 (float32) and 2.4 times (bfloat16).
constexpr int64_t kAhead = 2048, kFar = 1 << 18, kVeryFar = 1 << 22;

// One row of the run, ready for use: what it reads, and the weights of each in D and in the outputs. Bit 0 of `in` says
// that D has a part of it, bit 1 + k that output k has.
template <class S>
struct Job {
  Row<S> row;
  uint32_t mask;
  int64_t draw[kNoises];
  int terms;  // read
  bool far;   // they lie in memory: fetch them ahead of use
  int places[kTerms];
  uint32_t in[kTerms], in_d, in_xi[kNoises];
  Span term[kTerms], xi[kNoises], out[kOutputs];

  void prepare(int n_terms, int n_outs, int n_noises) {
    mask = needs(row.v, n_terms, n_outs, n_noises);
    int read = 0;
    for (int j = 0; j < n_terms; ++j)
      if (mask >> j & 1) {
        places[read] = j;
        in[read] = outputs(4 * j, n_outs) | (mask >> 8 & 1 && row.v[4 * j] != S(0) ? 1u : 0u);
        ++read;
      }
    terms = read;
    in_d = outputs(kLo, n_outs);
    for (int r = 0; r < kNoises; ++r) in_xi[r] = r < n_noises ? outputs(kHi + 4 * r, n_outs) : 0u;
  }

 private:
  uint32_t outputs(int column, int outs) const {
    uint32_t bits = 0;
    for (int k = 0; k < outs; ++k)
      if (row.v[column + 1 + k] != S(0)) bits |= 2u << k;  // (v[..] != 0) << k: wrong with gcc 12's sanitizers
    return bits;
  }
};

// Adds what `x` is in the outputs that have a part of it.
template <class S, class V, int L, int K>
FS_HD void add_parts(const S* weights, uint32_t in, const V (&x)[L], V (&acc)[K][L]) {
  FS_UNROLL
  for (int k = 0; k < K; ++k)
    if (in >> (1 + k) & 1) add_weighted<S, V, L>(weights[k], x, acc[k]);
}

// Elements [from, n), L vectors at a time, all spans dense, of a row with K outputs.
template <class V, int L, int K, Kind kind, class S = typename Lane<V>::Scalar>
void dense(const Job<S>& job, int64_t from, int64_t n) {
  constexpr int kWidth = Lane<V>::kWidth;
  for (int64_t i = from; i < n; i += L * kWidth) {
    V x[L], d[L], acc[K][L];
    FS_UNROLL
    for (int l = 0; l < L; ++l) {
      d[l] = V(S(0));
      FS_UNROLL
      for (int k = 0; k < K; ++k) acc[k][l] = V(S(0));
    }
    for (int t = 0; t < job.terms; ++t) {
      const int j = job.places[t];
      if (job.far) {
        const char* p = static_cast<const char*>(advance(job.term[j], i + kAhead).p);
        for (int64_t b = 0; b < bytes(job.term[j].type, L * kWidth); b += 64) __builtin_prefetch(p + b);
      }
      load_run<kind, L>(job.term[j], i, x);
      if (job.in[t] & 1) add_weighted<S, V, L>(job.row.v[4 * j], x, d);
      add_parts<S, V, L, K>(job.row.v + 4 * j + 1, job.in[t], x, acc);
    }
    if (job.in_d) {
      limit<S, V, L>(job.row.v, d);
      add_parts<S, V, L, K>(job.row.v + kLo + 1, job.in_d, d, acc);
    }
    FS_UNROLL
    for (int r = 0; r < kNoises; ++r)
      if (job.in_xi[r]) {
        load_run<Kind::kAny, L>(job.xi[r], i, x);
        add_parts<S, V, L, K>(job.row.v + kHi + 4 * r + 1, job.in_xi[r], x, acc);
      }
    FS_UNROLL
    for (int k = 0; k < K; ++k) {
      FS_UNROLL
      for (int l = 0; l < L; ++l) store<kind>(job.out[k], i + l * kWidth, acc[k][l]);
    }
  }
}

template <class V, int L, int K, Kind kind>
void dense_to_the_end(const Job<typename Lane<V>::Scalar>& job, int64_t from, int64_t n) {
  constexpr int kStep = L * Lane<V>::kWidth;
  const int64_t whole = from + (n - from) / kStep * kStep;
  dense<V, L, K, kind>(job, from, whole);
  if (whole < n) dense<V, 1, K, kind>(job, whole, n);
}

// Elements [from, n), whole vectors.
template <class V, int L, Kind kind>
void dense_by_outs(const Job<typename Lane<V>::Scalar>& job, int outs, int64_t from, int64_t n) {
  if (outs == 1)
    dense_to_the_end<V, L, 1, kind>(job, from, n);
  else if (outs == 2)
    dense_to_the_end<V, L, 2, kind>(job, from, n);
  else
    dense_to_the_end<V, L, 3, kind>(job, from, n);
}

// What will be read, fetched while normals are made: memory and arithmetic then overlap.
struct Ahead {
  Span span[kTerms];
  int count = 0;
  bool later = false;  // read so late that the second-level cache is the place for it
  FS_HD void operator()(int64_t i, int64_t n) const {
    for (int s = 0; s < count; ++s) {
      const char* p = static_cast<const char*>(span[s].p);
      for (int64_t at = bytes(span[s].type, i); at < bytes(span[s].type, i + n); at += 64)
        later ? __builtin_prefetch(p + at, 0, 2) : __builtin_prefetch(p + at);
    }
  }
};

// One row at a time, applied to tiles.
template <class V, int L>
class RowLoop {
 public:
  using S = typename Lane<V>::Scalar;
  static constexpr int kWidth = Lane<V>::kWidth;

  explicit RowLoop(const UpdateArgs& args) : a(args), dense_(args.unit) {
    const auto see = [&](DType t) { all_[0] &= t == DType::kF32, all_[1] &= t == DType::kBF16; };
    for (int j = 0; j < a.n_terms; ++j) see(a.terms[j].dtype);
    for (int k = 0; k < a.n_outs; ++k) see(a.outs[k].dtype);
    for (int r = 0; !a.key && r < a.n_noises; ++r)
      dense_ &= sizeof(S) == 8 || a.noise[r].dtype != DType::kF64;  // the lanes of float32 do not load float64
  }

  void prepare(const double* source) {
    for (int c = 0; c < kColumns; ++c) job_.row.v[c] = static_cast<S>(source[c]);
    for (int r = 0; r < kNoises; ++r) job_.draw[r] = static_cast<int64_t>(source[kDraw + r]);
    job_.prepare(a.n_terms, a.n_outs, a.n_noises);
    keyed_ = a.key && job_.mask >> 9;  // a key alone makes no noise: the row must ask for some
    job_.far = dense_ && !keyed_ && a.batch * a.numel >= kVeryFar;
  }

  // Whether this row takes the noise of a key or a stream.
  bool noisy() const { return keyed_; }

  // The noise, in place of that of the keys, and as if it were a tensor of a dtype. For a row with one noise.
  void draw_from(Stream* stream, DType dtype) { stream_ = stream, stream_dtype_ = dtype; }

  // Elements [i0, i0 + n) of a sample, n <= kTile. Where noise is made, its own reads are fetched meanwhile.
  void tile(int64_t sample, int64_t i0, int64_t n) {
    Ahead ahead;
    for (int j = 0; keyed_ && dense_ && a.batch * a.numel >= kFar && j < a.n_terms; ++j)
      if (job_.mask >> j & 1) ahead.span[ahead.count++] = at(a.terms[j], sample, i0);
    tile(sample, i0, n, ahead);
  }

  // The same; fetches what `ahead` names instead.
  void tile(int64_t sample, int64_t i0, int64_t n, Ahead ahead) {
    const int64_t whole = dense_ ? n / kWidth * kWidth : 0;
    if (dense_) {
      for (int j = 0; j < a.n_terms; ++j) job_.term[j] = at(a.terms[j], sample, i0);
      for (int k = 0; k < a.n_outs; ++k) job_.out[k] = at(a.outs[k], sample, i0);
      for (int r = 0; r < a.n_noises; ++r) job_.xi[r] = a.key ? Span{xi_[r], kType} : at(a.noise[r], sample, i0);
    }
    int64_t done = 0;
    // The row follows the last of its noises in pieces of kFollow: its loads and stores overlap with the arithmetic of
    // the next normals. Measured with AVX-512 and three terms: 0.86 ns per element; after the whole tile 0.94.
    const auto row = [&](int64_t made) {
      const int64_t to = made < whole ? made : whole;
      if (to > done) rows(done, to);
      done = to;
    };
    for (int r = 0; keyed_ && r < a.n_noises; ++r)
      if (job_.mask >> (9 + r) & 1) {
        const auto then = [&](int64_t made) {
          if (job_.mask >> (10 + r) == 0) row(made / kFollow * kFollow);
        };
        if (stream_) {
          from_stream(n, ahead, then, xi_[r]);
        } else {
          const uint64_t seed = a.key[2 * sample], offset = a.key[2 * sample + 1];
          normals(seed, offset + job_.draw[r] * a.chunks + i0 / Chunk<S>::kSize, n, ahead, then, xi_[r]);
        }
        ahead.count = 0;
      }
    row(whole);
    for (; done < n; done += kStridedTile)
      strided(sample, i0 + done, n - done < kStridedTile ? n - done : kStridedTile, done);
  }

 private:
  static constexpr DType kType = sizeof(S) == 8 ? DType::kF64 : DType::kF32;

  static Span at(const Operand& o, int64_t sample, int64_t i0) {
    return advance({o.data, o.dtype}, sample * o.batch_stride + i0);
  }

  // Elements [i0, i0 + n) by way of dense buffers: any strides, any n up to kStridedTile. Their noise is at xi_at.
  void strided(int64_t sample, int64_t i0, int64_t n, int64_t xi_at) {
    alignas(64) S in[kTerms + kNoises][kStridedTile];
    alignas(64) S out[kOutputs][kStridedTile];
    Job<S> local = job_;
    local.far = false;
    const int64_t padded = (n + kWidth - 1) / kWidth * kWidth;
    const auto fetch = [&](int slot, const Operand& o) {
      transfer<true>(a, o, sample, i0, n, in[slot]);
      std::memset(in[slot] + n, 0, (padded - n) * sizeof(S));
      return Span{in[slot], kType};
    };
    for (int j = 0; j < a.n_terms; ++j)
      if (job_.mask >> j & 1) local.term[j] = fetch(j, a.terms[j]);
    for (int r = 0; r < a.n_noises; ++r)
      if (job_.mask >> (9 + r) & 1) {
        local.xi[r] = a.key ? Span{xi_[r] + xi_at, kType} : fetch(kTerms + r, a.noise[r]);
        if (a.key) std::memset(xi_[r] + xi_at + n, 0, (padded - n) * sizeof(S));  // never made: they may be denormal
      }
    for (int k = 0; k < a.n_outs; ++k) local.out[k] = {out[k], kType};
    dense_by_outs<V, L, sizeof(S) == 4 ? Kind::kF32 : Kind::kAny>(local, a.n_outs, 0, padded);
    for (int k = 0; k < a.n_outs; ++k) transfer<false>(a, a.outs[k], sample, i0, n, out[k]);
  }

  template <class Then>
  void from_stream(int64_t n, const Ahead& ahead, const Then& then, float* z) {
    for (int64_t i = 0; i < n; i += Stream::kPiece) {
      const int64_t now = n - i < Stream::kPiece ? n - i : Stream::kPiece;
      const bool plain = stream_dtype_ == DType::kF32;
      const auto made = [&](int64_t from, int64_t to) {
        ahead(i + from + 2 * kFollow, to - from);
        if (plain) then(i + to);
      };
      stream_->normals(now, made, z + i);
      if (plain) continue;
      round_to(stream_dtype_, now, z + i);
      then(i + now);
    }
  }
  template <class Then>
  void from_stream(int64_t, const Ahead&, const Then&, double*) {}  // float64 normals of torch come from libm

  // Elements [from, to) of the spans.
  void rows(int64_t from, int64_t to) {
    if (sizeof(S) == 4 && all_[0])
      dense_by_outs<V, L, Kind::kF32>(job_, a.n_outs, from, to);
    else if (sizeof(S) == 4 && all_[1])
      dense_by_outs<V, L, Kind::kBF16>(job_, a.n_outs, from, to);
    else
      dense_by_outs<V, L, Kind::kAny>(job_, a.n_outs, from, to);
  }

  const UpdateArgs& a;
  Stream* stream_ = nullptr;
  DType stream_dtype_ = DType::kF32;
  bool dense_, keyed_ = false, all_[2] = {true, true};  // float32, bfloat16
  Job<S> job_;
  alignas(64) S xi_[kNoises][kTile + 64];
};

}  // namespace
}  // namespace FS_ISA
}  // namespace fs
