// How the threads of an update lie over the samples. Host code but for the struct, which the kernel gets.
#pragma once
#include "../update_args.h"

namespace fs::gpu {

constexpr int kBlock = 128;              // threads of a block, unless a variant says otherwise
constexpr int kMostThreads = 256;        // of a block of the update kernel
constexpr int kStagedBytes = 48 * 1024;  // shared memory that a block has without asking

// The shape of a launch of `update`; bits do not depend on it. variants.h says which one a call gets.
struct Variant {
  int32_t threads;  // of a block
  int32_t fill;     // threads a processor should get before any thread takes a second piece
  int32_t turns;    // most pieces of a thread once processors are full; 0: any number, a persistent grid
  bool early;       // programmatic dependent launch: blocks start while the kernel before them ends
};

// A piece is what a thread takes at once: kVector elements, or one chunk.
struct Layout {
  int64_t pieces;   // per sample
  int64_t tiles;    // blocks that share a sample
  int64_t stride;   // pieces from one turn of a thread to the next: tiles * threads
  int32_t samples;  // per block; 1 when tiles > 1
  int32_t rows;     // staged per block: 1, or one for each sample
  int32_t threads;  // of a block
  int32_t early;    // wait for the kernel before this one, and let the next one start
  int64_t blocks;
};

// The group of samples of a block. A grid has less than 2^31 blocks, so the short division does.
FS_HD int64_t group_of(const Layout& l, int64_t block) {
  return l.tiles == 1 ? block : static_cast<uint32_t>(block) / static_cast<uint32_t>(l.tiles);
}

inline Layout lay_out(const UpdateArgs& a, int64_t pieces, int64_t staged_bytes, int processors, const Variant& v) {
  const auto ceil_div = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  Layout l;
  l.pieces = pieces;
  l.threads = v.threads;
  l.early = v.early;
  int64_t samples = pieces >= v.threads ? 1 : v.threads / pieces;
  if (a.per_sample_step && samples > kStagedBytes / staged_bytes) samples = kStagedBytes / staged_bytes;
  l.samples = static_cast<int32_t>(samples);
  l.rows = a.per_sample_step ? l.samples : 1;
  const int64_t groups = ceil_div(a.batch, samples), all = ceil_div(pieces, v.threads);
  const int64_t wanted = ceil_div(static_cast<int64_t>(v.fill / v.threads) * processors, groups);
  const int64_t fewest = v.turns > 0 ? ceil_div(all, v.turns) : 1;
  l.tiles = wanted > all ? all : wanted > fewest ? wanted : fewest;
  l.stride = l.tiles * v.threads;
  l.blocks = groups * l.tiles;
  return l;
}

}  // namespace fs::gpu
