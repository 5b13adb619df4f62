// The sums of `rescale` on the CPU. Compiled once per instruction set with -DFS_ISA=<name>; see rescale.h.
#include "rescale.h"

#include "reduce.h"
#include "wide.h"

namespace fs {
namespace FS_ISA {
namespace {

// Elements [i0, i0 + n) of a term in the compute type; in place if they lie so.
template <class V, class S = typename Lane<V>::Scalar>
const S* fetch(const RescaleArgs& a, int term, int64_t sample, int64_t i0, int64_t n, S* buffer) {
  const Operand& o = a.terms[term];
  const Span at = advance({o.data, o.dtype}, sample * o.batch_stride + i0);
  if (a.unit && n == kMomentBlock && o.dtype == (sizeof(S) == 8 ? DType::kF64 : DType::kF32))
    return static_cast<const S*>(at.p);
  int64_t done = 0;
  if (a.unit)
    for (; done + Lane<V>::kWidth <= n; done += Lane<V>::kWidth) {
      V x;
      load<Kind::kAny>(at, done, x);
      store<Kind::kAny>({buffer, sizeof(S) == 8 ? DType::kF64 : DType::kF32}, done, x);
    }
  if (done < n) transfer<true>(a, o, sample, i0 + done, n - done, buffer + done);
  return buffer;
}

template <class V, class S = typename Lane<V>::Scalar>
void blocks(const RescaleArgs& a, int64_t sample, int64_t begin, int64_t end, Moments* to) {
  alignas(64) S c_memory[kMomentBlock], u_memory[kMomentBlock], e[kMomentBlock];
  alignas(64) Moments lanes[kLanes];
  const double* row = row_of(a, sample);
  const S weight = static_cast<S>(row[kGuidance]);
  const S c_first = *fetch<V>(a, a.cond, sample, 0, 1, c_memory),
          u_first = *fetch<V>(a, a.uncond, sample, 0, 1, u_memory);
  const double c_shift = c_first, e_shift = guided<S>(c_first, u_first, weight);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t i0 = block * kMomentBlock, n = a.numel - i0 < kMomentBlock ? a.numel - i0 : kMomentBlock;
    const S* c = fetch<V>(a, a.cond, sample, i0, n, c_memory);
    const S* u = fetch<V>(a, a.uncond, sample, i0, n, u_memory);
    const int64_t rounded = (n + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = n; i < rounded; ++i) c_memory[i] = c_first, u_memory[i] = u_first;  // adds nothing
    for (int64_t i = 0; i < rounded; i += Lane<V>::kWidth) {
      V cv, uv;
      load<Kind::kAny>({const_cast<S*>(c), sizeof(S) == 8 ? DType::kF64 : DType::kF32}, i, cv);
      load<Kind::kAny>({const_cast<S*>(u), sizeof(S) == 8 ? DType::kF64 : DType::kF32}, i, uv);
      store<Kind::kAny>({e, sizeof(S) == 8 ? DType::kF64 : DType::kF32}, i, guided(cv, uv, V(weight)));
    }
    for (int lane = 0; lane < kLanes; lane += kWide) {
      Doubles sc = {}, scc = {}, se = {}, see = {};
      for (int64_t i = lane; i < rounded; i += kLanes) {
        const Doubles dc = widen(c + i) - c_shift, de = widen(e + i) - e_shift;
        sc += dc, scc += dc * dc, se += de, see += de * de;
      }
      for (int k = 0; k < kWide; ++k) lanes[lane + k] = {sc[k], scc[k], se[k], see[k]};
    }
    fold(lanes, kLanes);
    to[block - begin] = lanes[0];
  }
}

}  // namespace

void rescale_blocks(const RescaleArgs& a, int64_t sample, int64_t begin, int64_t end, Moments* to) {
  if (a.wide)
    blocks<double>(a, sample, begin, end, to);
  else
    blocks<F32>(a, sample, begin, end, to);
}

}  // namespace FS_ISA
}  // namespace fs
