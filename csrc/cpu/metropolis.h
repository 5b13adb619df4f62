// The loops of `metropolis` on the CPU, one build of them per instruction set, and how samples are shared by threads.
#pragma once
#include <unistd.h>

#include <vector>

#include "../metropolis_args.h"
#include "update.h"

namespace fs {

#define FS_DECLARE_ISA(NAME)                                                                                     \
  namespace NAME {                                                                                               \
  void metropolis_samples(const MetropolisArgs& args, int64_t begin, int64_t end);                               \
  void metropolis_blocks(const MetropolisArgs& args, int64_t sample, int64_t begin, int64_t end, RatioSums* to); \
  void metropolis_tiles(const MetropolisArgs& args, int64_t begin, int64_t end);                                 \
  }
FS_DECLARE_ISA(isa_base)
FS_DECLARE_ISA(isa_avx2)
FS_DECLARE_ISA(isa_avx512)
#undef FS_DECLARE_ISA

// Samples [begin, end) one after the other: sums, choice, move. Or the parts of it for samples that are shared: the
// sums of blocks [begin, end) of one, and the moves of tiles [begin, end) of all, whose choice is made.
struct MetropolisLoops {
  void (*samples)(const MetropolisArgs&, int64_t, int64_t);
  void (*blocks)(const MetropolisArgs&, int64_t, int64_t, int64_t, RatioSums*);
  void (*tiles)(const MetropolisArgs&, int64_t, int64_t);
};

inline const double* row_of(const MetropolisArgs& a, int64_t sample) {
  return a.table + a.step[a.per_sample_step ? sample : 0] * kDecisionColumns;
}

// Bytes of the second-level cache, or a guess.
inline int64_t second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 1 << 20;
}

// The least power of two that is not below n: what lies beyond adds nothing to a fold.
inline int fold_size(int64_t n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}

// The choice of a sample from the sums of its blocks.
inline bool choose(const MetropolisArgs& a, int64_t sample, const RatioSums* blocks, int64_t count) {
  RatioSums strands[kStrands];
  const int used = fold_size(count < kStrands ? count : kStrands);
  for (int i = 0; i < used; ++i) strands[i] = i < count ? blocks[i] : RatioSums{};
  for (int64_t i = kStrands; i < count; ++i) strands[i % kStrands] = strands[i % kStrands] + blocks[i];
  fold(strands, used);
  const double* row = row_of(a, sample);
  const double u = a.uniform ? a.uniform[sample]
                             : choice_uniform(a.key[2 * sample], a.key[2 * sample + 1],
                                              static_cast<uint64_t>(static_cast<int64_t>(row[kUniformDraw])));
  double* chain = a.chain + sample * kChain;
  const double ratio = whole_ratio(row, chain, strands[0]);
  const bool accept = accepts(row, ratio, strands[0], u);
  record_choice(chain, ratio, accept);
  return accept;
}

// Whole samples go to threads, or where these are few and large, blocks of them: parallel(count, grain, f(begin, end)).
template <class Parallel>
void run_metropolis(const MetropolisArgs& a, const MetropolisLoops& loops, int64_t threads, const Parallel& parallel) {
  constexpr int64_t kGrain = 16384, kLarge = 65536;  // elements that make a thread worth it, or a share of a sample
  const int64_t blocks = (a.numel + kMomentBlock - 1) / kMomentBlock, tiles = (a.numel + kUpdateTile - 1) / kUpdateTile;
  if (threads == 1 || a.batch * a.numel <= kGrain) return loops.samples(a, 0, a.batch);
  if (a.numel < kLarge || a.batch >= 4 * threads || a.batch % threads == 0)
    return parallel(a.batch, a.numel < kGrain ? kGrain / (a.numel + 1) + 1 : 1,
                    [&](int64_t begin, int64_t end) { loops.samples(a, begin, end); });
  std::vector<RatioSums> sums(a.batch * blocks);
  parallel(a.batch * blocks, kGrain / kMomentBlock, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t sample = begin / blocks, last = (sample + 1) * blocks, stop = last < end ? last : end;
      loops.blocks(a, sample, begin - sample * blocks, stop - sample * blocks, sums.data() + begin);
      begin = stop;
    }
  });
  for (int64_t b = 0; b < a.batch; ++b) choose(a, b, sums.data() + b * blocks, blocks);
  parallel(a.batch * tiles, kGrain / kUpdateTile, [&](int64_t begin, int64_t end) { loops.tiles(a, begin, end); });
}

}  // namespace fs
