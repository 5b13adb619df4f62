// The Metropolis choice (docs/metropolis.md): layout of a decision row, the log-ratio of one element, the uniform, the
// choice. The sums are folded as core/moments.h has it.
#pragma once
#include "moments.h"
#include "philox.h"

namespace fs {

constexpr int kDecisionColumns = 96, kDecisionTerms = 4, kOperands = 4 + kDecisionTerms;
constexpr int kRatio = 48, kKappa = 80, kEnergyFlag = 81, kRadius = 82, kUniformDraw = 84;
constexpr int kEnergy = 0, kProposed = 1, kLogRatio = 2, kAccept = 3, kCount = 4, kChain = 5;  // columns of the chain

// A row after conversion to the compute type. Its first columns are a Row; the weights A_j, G_j, H_j lie side by side.
template <class S>
struct alignas(16) DecisionRow {
  S v[kDecisionColumns];
};

// What is summed over the elements of a sample: the log-ratio, (u_1 - u_0)^2, u_1^2.
struct RatioSums {
  double s, dd, pp;
};
FS_HD RatioSums operator+(const RatioSums& a, const RatioSums& b) { return {a.s + b.s, a.dd + b.dd, a.pp + b.pp}; }

FS_HD bool has_radius(const double* row, int k) { return row[kRadius + k] < static_cast<double>(INFINITY); }

// What a row reads of `operands` operands. Bit j: operand j; bit 8: q; bits 9, 10: the radii. `row` is in the compute
// type, `source` the row as it is in the table.
template <class S>
FS_HD uint32_t ratio_needs(const S* row, const double* source, int operands) {
  uint32_t mask = 0;
  for (int j = 0; j < operands; ++j) {
    const S* w = row + kRatio + 4 * j;
    mask |= (w[0] != S(0) || w[1] != S(0) || w[2] != S(0) ? 1u : 0u) << j;
    mask |= (w[0] != S(0) ? 1u : 0u) << 8;
  }
  if (has_radius(source, 0)) mask |= 1u << 9;
  if (has_radius(source, 1)) mask |= 1u << 10;
  if (mask & (1u << 8 | 1u << 9)) mask |= 3u;
  if (mask & 1u << 10) mask |= 2u;
  return mask;
}

// Adds the products of operand j to q, g and h.
template <class S, class V, int L>
FS_HD void add_operand(const S* row, int j, const V u[L], V q[L], V g[L], V h[L]) {
  const S* w = row + kRatio + 4 * j;
  accumulate<S, V, L>(w[0], u, q);
  accumulate<S, V, L>(w[1], u, g);
  accumulate<S, V, L>(w[2], u, h);
}

// The log-ratio from the sums of products; d = u_1 - u_0 is used if bit 8 of the mask is set.
template <class S, class V, int L>
FS_HD void close_ratio(const S* row, uint32_t mask, const V d[L], const V q[L], const V g[L], const V h[L], V s[L]) {
  const V kappa(row[kKappa]);
  FS_UNROLL
  for (int i = 0; i < L; ++i) s[i] = mask & 1u << 8 ? d[i] * q[i] : V(S(0));
  FS_UNROLL
  for (int i = 0; i < L; ++i) s[i] = fma(kappa * (g[i] - h[i]), g[i] + h[i], s[i]);
}

// The log-ratio of one element group. u[j] are the operands in the order state, proposal, cache, fresh, terms.
template <class S, class V, int L, int K>
FS_HD void log_ratio(const S* row, uint32_t mask, const V (&u)[K][L], V s[L]) {
  V q[L], g[L], h[L], d[L];
  FS_UNROLL
  for (int i = 0; i < L; ++i) q[i] = V(S(0)), g[i] = V(S(0)), h[i] = V(S(0)), d[i] = u[1][i] - u[0][i];
  FS_UNROLL
  for (int j = 0; j < K; ++j)
    if (mask >> j & 1) add_operand<S, V, L>(row, j, u[j], q, g, h);
  close_ratio<S, V, L>(row, mask, d, q, g, h, s);
}

// The uniform in (0, 1) of a chain. The third word of the counter is 0 in every draw of normals and has its top bit set
// in a Brownian tree: uniforms share nothing with either.
FS_HD double choice_uniform(uint64_t seed, uint64_t offset, uint64_t draw) {
  const uint64_t counter = offset + draw;
  uint32_t r[4];
  philox_rounds<0>(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 1u << 30, 0u, seed, r);
  return uniform_wide(r[0], r[1]);
}

// What the energies add to the log-ratio of a chain: they are read only if the row asks for them.
FS_HD double energy_part(const double* row, const double* chain) {
  return row[kEnergyFlag] != 0 ? row[kEnergyFlag] * (chain[kEnergy] - chain[kProposed]) : 0.0;
}
FS_HD double whole_ratio(const double* row, const double* chain, const RatioSums& sums) {
  return energy_part(row, chain) + sums.s;
}

// Whether a chain accepts; a NaN in any comparison rejects.
FS_HD bool accepts(const double* row, double ratio, const RatioSums& sums, double u) {
  if (has_radius(row, 0) && !(sums.dd <= row[kRadius] * row[kRadius])) return false;
  if (has_radius(row, 1) && !(sums.pp <= row[kRadius + 1] * row[kRadius + 1])) return false;
  return ::log(u) < ratio;
}

// Writes the choice into the numbers of a chain.
FS_HD void record_choice(double* chain, double ratio, bool accept) {
  chain[kLogRatio] = ratio;
  chain[kAccept] = accept ? 1.0 : 0.0;
  if (!accept) return;
  chain[kCount] += 1.0;
  chain[kEnergy] = chain[kProposed];
}

}  // namespace fs
