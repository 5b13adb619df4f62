// The launches of `threshold`: how many, of which kernel, in what memory.
#pragma once
#include "threshold.cuh"

namespace fs::gpu {

// What a call launches.
struct SelectPlan {
  bool small, vector, many;  // one block per sample; pieces; 64-bit counts
  int levels;
  int64_t at_once, tiles;  // samples of a launch; blocks of a sample
  int64_t workspace;       // bytes
  int64_t counts;          // bytes of the counts of all levels of a sample
};

inline SelectPlan plan_select(const ThresholdArgs& a, int processors, int64_t shared_limit) {
  SelectPlan p{};
  const int64_t word = a.wide ? 8 : 4;
  p.vector = in_vectors(a);
  p.small = a.numel * word <= shared_limit && (a.numel <= (1 << 14) || 4 * a.batch >= processors);
  if (p.small) return p;
  p.many = a.numel >> 32;
  p.levels = a.wide ? kLevels<double> : kLevels<float>;
  p.at_once = a.batch < kSamplesAtOnce ? a.batch : kSamplesAtOnce;
  p.counts = p.levels * kBins * (p.many ? 8 : 4);
  p.workspace = p.at_once * (p.counts + static_cast<int64_t>(sizeof(Select)));
  const int64_t piece = kSelectBlock * kReducePiece;
  const int64_t most = (a.numel + 8 * piece - 1) / (8 * piece);  // at least 8 pieces a thread
  const int64_t wanted = (8 * static_cast<int64_t>(processors) + p.at_once - 1) / p.at_once;
  p.tiles = most < wanted ? most : wanted;
  return p;
}

// Calls on.small(a), or on.clear(memory, bytes) and on.level(...) for all samples.
template <class S, class Count, bool kVector, class On>
void run_levels(const ThresholdArgs& a, const SelectPlan& p, char* memory, const On& on) {
  Select* selects = reinterpret_cast<Select*>(memory);
  Count* bins = reinterpret_cast<Count*>(memory + p.at_once * sizeof(Select));
  for (int64_t first = 0; first < a.batch; first += p.at_once) {
    const int64_t samples = a.batch - first < p.at_once ? a.batch - first : p.at_once;
    on.clear(memory, p.workspace);
    for (int level = 0; level < p.levels; ++level)
      on.launch(threshold_level<S, Count, kVector>, samples * p.tiles, kSelectBlock, 0, a, SelectLayout{first, p.tiles},
                level, selects, bins + level * p.at_once * kBins);
  }
}

template <class S, bool kVector, class On>
void run_select(const ThresholdArgs& a, const SelectPlan& p, char* memory, const On& on) {
  if (a.batch == 0) return;
  if (p.small)
    on.launch(threshold_small<S, kVector>, a.batch, kSelectBlock, a.numel * static_cast<int64_t>(sizeof(Word<S>)), a);
  else if (p.many)
    run_levels<S, Wide, kVector>(a, p, memory, on);
  else
    run_levels<S, unsigned, kVector>(a, p, memory, on);
}

template <class On>
void run_threshold(const ThresholdArgs& a, const SelectPlan& p, char* memory, const On& on) {
  if (a.wide)
    run_select<double, false>(a, p, memory, on);
  else if (p.vector)
    run_select<float, true>(a, p, memory, on);
  else
    run_select<float, false>(a, p, memory, on);
}

}  // namespace fs::gpu
