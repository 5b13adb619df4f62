// The loops of `metropolis` on the CPU. Compiled once per instruction set with -DFS_ISA=<name>; see metropolis.h.
#include "metropolis.h"

#include "row_loop.h"
#include "wide.h"

namespace fs {
namespace FS_ISA {
namespace {

constexpr int kSums = 3;  // the fields of RatioSums

FS_HD void add_wide(double* to, double x) { *to += x; }

// The sums of blocks: log-ratios of elements in the compute type, each added to its lane in float64.
template <class V, int L>
class Ratios {
 public:
  using S = typename Lane<V>::Scalar;
  static constexpr int kStep = L * Lane<V>::kWidth;

  explicit Ratios(const MetropolisArgs& args) : a(args) {
    bool f32 = true, bf16 = true;
    for (int j = 0; j < a.n_operands; ++j)
      f32 &= a.operands[j].dtype == DType::kF32, bf16 &= a.operands[j].dtype == DType::kBF16;
    kind_ = sizeof(S) == 8 ? Kind::kAny : f32 ? Kind::kF32 : bf16 ? Kind::kBF16 : Kind::kAny;
  }

  void prepare(const double* source) {
    for (int c = 0; c < kDecisionColumns; ++c) row_.v[c] = static_cast<S>(source[c]);
    mask_ = ratio_needs(row_.v, source, a.n_operands);
    used_[0] = true, used_[1] = mask_ >> 9 & 1, used_[2] = mask_ >> 10 & 1;
  }

  RatioSums block(int64_t sample, int64_t index) {
    const int64_t i0 = index * kMomentBlock, n = a.numel - i0 < kMomentBlock ? a.numel - i0 : kMomentBlock;
    const int lanes = fold_size(n < kLanes ? n : kLanes);
    for (int k = 0; k < kSums; ++k)
      for (int l = 0; used_[k] && l < lanes; ++l) lanes_[k][l] = 0;
    Span u[kOperands];
    int64_t done = a.unit ? n / kStep * kStep : 0;
    for (int j = 0; j < a.n_operands; ++j)
      u[j] = advance({a.operands[j].data, a.operands[j].dtype}, sample * a.operands[j].batch_stride + i0);
    if (kind_ == Kind::kF32)
      form<Kind::kF32>(u, 0, done, done);
    else if (kind_ == Kind::kBF16)
      form<Kind::kBF16>(u, 0, done, done);
    else
      form<Kind::kAny>(u, 0, done, done);
    for (; done < n; done += kLanes) gathered(sample, i0, done, n - done < kLanes ? n - done : kLanes);
    return {fold_lanes(0, lanes), fold_lanes(1, lanes), fold_lanes(2, lanes)};
  }

 private:
  static constexpr DType kType = sizeof(S) == 8 ? DType::kF64 : DType::kF32;

  // n <= kLanes elements from `at` of the block on by way of dense buffers: any strides, any n.
  void gathered(int64_t sample, int64_t i0, int64_t at, int64_t n) {
    Span u[kOperands];
    const int64_t padded = (n + kStep - 1) / kStep * kStep;
    for (int j = 0; j < a.n_operands; ++j) {
      if (!(mask_ >> j & 1)) continue;
      transfer<true>(a, a.operands[j], sample, i0 + at, n, buffer_[j]);
      std::memset(buffer_[j] + n, 0, (padded - n) * sizeof(S));
      u[j] = {buffer_[j], kType};
    }
    form<sizeof(S) == 4 ? Kind::kF32 : Kind::kAny>(u, at, padded, n);
  }

  // Elements [0, n) of `u`, in vectors up to `padded`; the first is element `at` of the block.
  template <Kind kind>
  void form(const Span* u, int64_t at, int64_t padded, int64_t n) {
    for (int64_t i = 0; i < padded; i += kStep) {
      V q[L], g[L], h[L], s[L], x[L], first[L], second[L];
      const auto take = [&](int j, V(&to)[L]) __attribute__((always_inline)) {
        load_run<kind, L>(u[j], i, to);
        add_operand<S, V, L>(row_.v, j, to, q, g, h);
      };
      FS_UNROLL
      for (int l = 0; l < L; ++l) q[l] = g[l] = h[l] = first[l] = second[l] = V(S(0));
      if (mask_ & 1) take(0, first);
      if (mask_ & 2) take(1, second);
      FS_UNROLL
      for (int j = 2; j < kOperands; ++j)
        if (mask_ >> j & 1) take(j, x);
      FS_UNROLL
      for (int l = 0; l < L; ++l) first[l] = second[l] - first[l];
      close_ratio<S, V, L>(row_.v, mask_, first, q, g, h, s);
      add(0, at, i, n, s);
      if (!(mask_ >> 9)) continue;
      FS_UNROLL
      for (int l = 0; l < L; ++l) first[l] = first[l] * first[l], second[l] = second[l] * second[l];
      if (used_[1]) add(1, at, i, n, first);
      if (used_[2]) add(2, at, i, n, second);
    }
  }

  // Adds the first of `n` elements that x holds from `i` on to the lanes of sum k.
  void add(int k, int64_t at, int64_t i, int64_t n, const V* x) {
    constexpr int kWidth = Lane<V>::kWidth;
    if (i + kStep <= n && (at + i) % kStep == 0) {
      FS_UNROLL
      for (int l = 0; l < L; ++l) add_wide(lanes_[k] + (at + i) % kLanes + l * kWidth, x[l]);
      return;
    }
    S some[kStep];
    for (int l = 0; l < L; ++l) store<Kind::kAny>({some, kType}, l * kWidth, x[l]);
    for (int64_t e = 0; e < kStep && i + e < n; ++e) lanes_[k][(at + i + e) % kLanes] += some[e];
  }

  double fold_lanes(int k, int n) {
    if (!used_[k]) return 0;
    double* x = lanes_[k];
    for (; n / 2 >= kWide; n /= 2)
      for (int i = 0; i < n / 2; i += kWide)
        *reinterpret_cast<Doubles*>(x + i) += *reinterpret_cast<const Doubles*>(x + i + n / 2);
    fold(x, n);
    return x[0];
  }

  const MetropolisArgs& a;
  Kind kind_;
  DecisionRow<S> row_;
  uint32_t mask_ = 0;
  bool used_[kSums];
  alignas(64) double lanes_[kSums][kLanes];
  alignas(64) S buffer_[kOperands][kLanes];
};

// The moves of tiles: where the chain accepts, proposal and fresh become state and cache first.
template <class V, int L>
class Moves {
 public:
  using S = typename Lane<V>::Scalar;

  explicit Moves(const MetropolisArgs& args)
      : a(args),
        args_{move_args(args, false), move_args(args, true)},
        loops_{RowLoop<V, L>(args_[0]), RowLoop<V, L>(args_[1])} {}

  void prepare(const double* source) {
    for (auto& loop : loops_) loop.prepare(source);
  }

  // Elements [i0, i0 + n) of a sample. `next`: a sample whose operands are fetched meanwhile; below 0: what is read.
  void tile(int64_t sample, int64_t i0, int64_t n, bool accept, int64_t next) {
    if (accept) {
      copy(a.operands[kProposal], a.operands[kState], sample, i0, n);
      copy(a.operands[kFresh], a.operands[kCache], sample, i0, n);
    }
    if (!a.n_outs) return;
    if (next < 0) return loops_[accept].tile(sample, i0, n);
    Ahead ahead;
    ahead.later = true;
    for (int j = 0; a.unit && j < a.n_operands; ++j)
      ahead.span[ahead.count++] =
          advance({a.operands[j].data, a.operands[j].dtype}, next * a.operands[j].batch_stride + i0);
    loops_[accept].tile(sample, i0, n, ahead);
  }

 private:
  void copy(const Operand& from, const Operand& to, int64_t sample, int64_t i0, int64_t n) {
    const Span source = advance({from.data, from.dtype}, sample * from.batch_stride + i0);
    const Span target = advance({to.data, to.dtype}, sample * to.batch_stride + i0);
    int64_t done = 0;
    if (a.unit && from.dtype == to.dtype) {
      std::memcpy(target.p, source.p, bytes(to.dtype, n));
      return;
    }
    if (a.unit)
      for (; done + Lane<V>::kWidth <= n; done += Lane<V>::kWidth) {
        V x;
        load<Kind::kAny>(source, done, x);
        store<Kind::kAny>(target, done, x);
      }
    if (done == n) return;
    S x[kTile];
    transfer<true>(a, from, sample, i0 + done, n - done, x);
    transfer<false>(a, to, sample, i0 + done, n - done, x);
  }

  const MetropolisArgs& a;
  UpdateArgs args_[2];
  RowLoop<V, L> loops_[2];
};

// Whether a sample waits in the second-level cache until the next one has been worked on.
bool stays(const MetropolisArgs& a) {
  int64_t bytes = 0;
  for (int j = 0; j < a.n_operands; ++j) bytes += size_of(a.operands[j].dtype);
  return a.numel * bytes <= second_level_cache() / 3;
}

template <class V, int L>
void samples(const MetropolisArgs& a, int64_t begin, int64_t end) {
  Ratios<V, 4> ratios(a);
  Moves<V, L> moves(a);
  const int64_t blocks = (a.numel + kMomentBlock - 1) / kMomentBlock;
  std::vector<RatioSums> sums(blocks);
  const bool near = stays(a);
  const double* prepared = nullptr;
  for (int64_t b = begin; b < end; ++b) {
    const double* row = row_of(a, b);
    if (row != prepared) {
      prepared = row;
      ratios.prepare(row);
      moves.prepare(row);
    }
    for (int64_t i = 0; i < blocks; ++i) sums[i] = ratios.block(b, i);
    const bool accept = choose(a, b, sums.data(), blocks);
    const int64_t next = near && b + 1 < end ? b + 1 : -1;
    for (int64_t i0 = 0; i0 < a.numel; i0 += kTile)
      moves.tile(b, i0, a.numel - i0 < kTile ? a.numel - i0 : kTile, accept, next);
  }
}

template <class V, int L>
void blocks(const MetropolisArgs& a, int64_t sample, int64_t begin, int64_t end, RatioSums* to) {
  Ratios<V, 4> ratios(a);
  ratios.prepare(row_of(a, sample));
  for (int64_t i = begin; i < end; ++i) to[i - begin] = ratios.block(sample, i);
}

template <class V, int L>
void tiles(const MetropolisArgs& a, int64_t begin, int64_t end) {
  Moves<V, L> moves(a);
  const int64_t per_sample = (a.numel + kTile - 1) / kTile;
  const double* prepared = nullptr;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t b = tile / per_sample, i0 = tile % per_sample * kTile;
    if (row_of(a, b) != prepared) moves.prepare(prepared = row_of(a, b));
    moves.tile(b, i0, a.numel - i0 < kTile ? a.numel - i0 : kTile, a.chain[b * kChain + kAccept] != 0, -1);
  }
}

}  // namespace

void metropolis_samples(const MetropolisArgs& a, int64_t begin, int64_t end) {
  a.wide ? samples<double, 4>(a, begin, end) : samples<F32, 2>(a, begin, end);
}
void metropolis_blocks(const MetropolisArgs& a, int64_t sample, int64_t begin, int64_t end, RatioSums* to) {
  a.wide ? blocks<double, 4>(a, sample, begin, end, to) : blocks<F32, 2>(a, sample, begin, end, to);
}
void metropolis_tiles(const MetropolisArgs& a, int64_t begin, int64_t end) {
  a.wide ? tiles<double, 4>(a, begin, end) : tiles<F32, 2>(a, begin, end);
}

}  // namespace FS_ISA
}  // namespace fs
