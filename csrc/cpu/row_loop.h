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

constexpr int kTile = kUpdateTile, kStridedTile = 512;
// In elements. From kFar on the terms do not lie in the second-level cache, from kVeryFar on in none. Measured at 2^20
// with noise: 2 to 6 % faster; at 2^24 without: 1.3 (float32) and 2.4 times (bfloat16).
constexpr int64_t kAhead = 2048, kFar = 1 << 18, kVeryFar = 1 << 22;

// One row of the run, ready for use.
template <class S>
struct Job {
  Row<S> row;
  uint32_t mask;
  int64_t draw[kNoises];
  int terms, outs, noises;
  bool far;  // the terms lie in memory: fetch them ahead of use
  Span term[kTerms], xi[kNoises], out[kOutputs];
};

// Elements [0, n), n a multiple of L * width, all spans dense.
template <class V, int L, int K, Kind kind, class S = typename Lane<V>::Scalar>
void dense(const Job<S>& job, int64_t n) {
  constexpr int kWidth = Lane<V>::kWidth;
  for (int64_t i = 0; i < n; i += L * kWidth) {
    V x[K][L], xi[kNoises][L], d[L], acc[L];
    if (job.far)
      for (int j = 0; j < job.terms; ++j) {
        const char* p = static_cast<const char*>(advance(job.term[j], i + kAhead).p);
        for (int64_t b = 0; b < bytes(job.term[j].type, L * kWidth); b += 64) __builtin_prefetch(p + b);
      }
    FS_UNROLL
    for (int j = 0; j < K; ++j) {
      FS_UNROLL
      for (int l = 0; l < L; ++l) x[j][l] = V(S(0));
      if (job.mask >> j & 1) load_run<kind, L>(job.term[j], i, x[j]);
    }
    FS_UNROLL
    for (int r = 0; r < kNoises; ++r) {
      FS_UNROLL
      for (int l = 0; l < L; ++l) xi[r][l] = V(S(0));
      if (job.mask >> (9 + r) & 1) load_run<Kind::kAny, L>(job.xi[r], i, xi[r]);
    }
    FS_UNROLL
    for (int l = 0; l < L; ++l) d[l] = V(S(0));
    if (job.mask >> 8 & 1) predict<S, V, L, K>(job.row.v, x, job.terms, d);
    for (int k = 0; k < job.outs; ++k) {
      combine<S, V, L, K, kNoises>(job.row.v, k, x, job.terms, d, xi, job.noises, acc);
      FS_UNROLL
      for (int l = 0; l < L; ++l) store<kind>(job.out[k], i + l * kWidth, acc[l]);
    }
  }
}

template <class V, int L, Kind kind>
void dense_by_terms(const Job<typename Lane<V>::Scalar>& job, int64_t n) {
  if (job.terms <= 2)
    dense<V, L, 2, kind>(job, n);
  else if (job.terms <= 4)
    dense<V, L, 4, kind>(job, n);
  else
    dense<V, L, 8, kind>(job, n);
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
  static constexpr int kStep = L * Lane<V>::kWidth;

  explicit RowLoop(const UpdateArgs& args) : a(args), dense_(args.unit) {
    const auto see = [&](DType t) { all_[0] &= t == DType::kF32, all_[1] &= t == DType::kBF16; };
    for (int j = 0; j < a.n_terms; ++j) see(a.terms[j].dtype);
    for (int k = 0; k < a.n_outs; ++k) see(a.outs[k].dtype);
    for (int r = 0; !a.key && r < a.n_noises; ++r)
      dense_ &= sizeof(S) == 8 || a.noise[r].dtype != DType::kF64;  // the lanes of float32 do not load float64
    job_.terms = a.n_terms, job_.outs = a.n_outs, job_.noises = a.n_noises;
  }

  void prepare(const double* source) {
    for (int c = 0; c < kColumns; ++c) job_.row.v[c] = static_cast<S>(source[c]);
    for (int r = 0; r < kNoises; ++r) job_.draw[r] = static_cast<int64_t>(source[kDraw + r]);
    job_.mask = needs(job_.row.v, a.n_terms, a.n_outs, a.n_noises);
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
    for (int r = 0; keyed_ && r < a.n_noises; ++r)
      if (job_.mask >> (9 + r) & 1 && stream_) {
        from_stream(n, ahead, xi_[r]);
      } else if (job_.mask >> (9 + r) & 1) {
        const uint64_t seed = a.key[2 * sample], offset = a.key[2 * sample + 1];
        normals(seed, offset + job_.draw[r] * a.chunks + i0 / Chunk<S>::kSize, n, ahead, xi_[r]);
        ahead.count = 0;
      }
    int64_t done = 0;
    if (dense_) {
      for (int j = 0; j < a.n_terms; ++j) job_.term[j] = at(a.terms[j], sample, i0);
      for (int k = 0; k < a.n_outs; ++k) job_.out[k] = at(a.outs[k], sample, i0);
      for (int r = 0; r < a.n_noises; ++r) job_.xi[r] = a.key ? Span{xi_[r], kType} : at(a.noise[r], sample, i0);
      done = n / kStep * kStep;
      if (sizeof(S) == 4 && all_[0])
        dense_by_terms<V, L, Kind::kF32>(job_, done);
      else if (sizeof(S) == 4 && all_[1])
        dense_by_terms<V, L, Kind::kBF16>(job_, done);
      else
        dense_by_terms<V, L, Kind::kAny>(job_, done);
    }
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
    const int64_t padded = (n + kStep - 1) / kStep * kStep;
    const auto fetch = [&](int slot, const Operand& o) {
      transfer<true>(a, o, sample, i0, n, in[slot]);
      std::memset(in[slot] + n, 0, (padded - n) * sizeof(S));
      return Span{in[slot], kType};
    };
    for (int j = 0; j < a.n_terms; ++j)
      if (job_.mask >> j & 1) local.term[j] = fetch(j, a.terms[j]);
    for (int r = 0; r < a.n_noises; ++r)
      if (job_.mask >> (9 + r) & 1) local.xi[r] = a.key ? Span{xi_[r] + xi_at, kType} : fetch(kTerms + r, a.noise[r]);
    for (int k = 0; k < a.n_outs; ++k) local.out[k] = {out[k], kType};
    dense_by_terms<V, L, sizeof(S) == 4 ? Kind::kF32 : Kind::kAny>(local, padded);
    for (int k = 0; k < a.n_outs; ++k) transfer<false>(a, a.outs[k], sample, i0, n, out[k]);
  }

  void from_stream(int64_t n, const Ahead& ahead, float* z) {
    for (int64_t i = 0; i < n; i += Stream::kPiece) {
      const int64_t now = n - i < Stream::kPiece ? n - i : Stream::kPiece;
      ahead(i, now);
      stream_->normals(now, z + i);
    }
    round_to(stream_dtype_, n, z);
  }
  void from_stream(int64_t, const Ahead&, double*) {}  // float64 normals of torch come from libm

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
