// The bytes of a torch CPU generator and the state of MT19937 that they hold.
#pragma once
#include <cmath>
#include <cstring>

#include "cpu/torch_stream.h"

namespace fs {

// The beginning of what `torch.Generator.get_state` gives on a CPU. Saved checkpoints have it, so it does not change.
struct GeneratorBytes {
  uint64_t seed;
  int32_t left, seeded;  // words that are not drawn, and one
  uint64_t next, words[kMersenne];
};

// False if the bytes are not those of a state as torch leaves it.
inline bool read_state(const void* bytes, Mersenne& m) {
  GeneratorBytes g;
  std::memcpy(&g, bytes, sizeof g);
  const bool fresh = g.left == 1 && g.next == 0;
  if (g.seeded != 1 || g.left < 1 || g.left > kMersenne) return false;
  if (!fresh && g.next != static_cast<uint64_t>(kMersenne + 1 - g.left)) return false;
  for (int i = 0; i < kMersenne + 16; ++i) m.words[i] = i < kMersenne ? static_cast<uint32_t>(g.words[i]) : 0;
  m.left = g.left - 1;
  return true;
}

// Changes the bytes of an earlier state of the same generator.
inline void write_state(const Mersenne& m, void* bytes) {
  GeneratorBytes g;
  std::memcpy(&g, bytes, sizeof g);
  g.left = static_cast<int32_t>(m.left + 1);
  g.next = static_cast<uint64_t>(kMersenne - m.left);
  for (int i = 0; i < kMersenne; ++i) g.words[i] = m.words[i];
  std::memcpy(bytes, &g, sizeof g);
}

constexpr int64_t kStreamParts = 24;  // more would step over words only

// Where part `k` of `parts` begins: whoever comes later has more to step over, and gets less to make.
inline int64_t stream_part(int64_t blocks, int64_t k, int64_t parts) {
  constexpr double kRatio = 0.85;  // one less the time of stepping over a word over that of making a normal
  if (k == parts) return blocks;
  return static_cast<int64_t>(blocks * ((1 - std::pow(kRatio, k)) / (1 - std::pow(kRatio, parts))));
}

}  // namespace fs
