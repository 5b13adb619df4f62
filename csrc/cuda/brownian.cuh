// The body of the brownian kernel, host and device. A block takes kBlock chunks of one sample; it stages the nodes of
// the sample's query in shared memory, kBlock at a time, and every thread adds them to its chunk.
#pragma once
#include "../brownian_args.h"
#include "../core/brownian.h"
#include "update.cuh"

namespace fs::gpu {

// A node as a block keeps it: 16 bytes, one load.
template <class S>
struct alignas(16) StagedNode {  // float64
  uint64_t number;               // 0 ends the query
  S weight;
  FS_HD bool ends() const { return number == 0; }
};
template <>
struct alignas(16) StagedNode<float> {
  NodeWords words;
  uint32_t tag;  // 0 ends the query
  float weight;
  FS_HD bool ends() const { return tag == 0; }
};

FS_HD void set_node(StagedNode<float>& to, uint64_t seed, uint64_t number, double weight) {
  to = {words_of_node(seed, number), number ? tag_of(number) : 0u, static_cast<float>(weight)};
}
FS_HD void set_node(StagedNode<double>& to, uint64_t, uint64_t number, double weight) { to = {number, weight}; }

// Node `n` of the query of a sample. A step out of range becomes one node with the weight NaN.
template <class S>
FS_HD void stage_node(const BrownianArgs& a, int64_t sample, int64_t n, StagedNode<S>& to) {
  const int64_t step = a.step[a.per_sample_step ? sample : 0];
  const bool good = step >= 0 && step < a.rows, inside = good && n < a.width;
  const uint64_t number = inside ? static_cast<uint64_t>(a.nodes[step * a.width + n]) : !good && n == 0 ? 1u : 0u;
  const double weight = inside ? a.weights[step * a.width + n] : static_cast<double>(NAN);
  set_node(to, a.key[2 * sample], number, weight);
}

// The sum of one chunk.
template <class S>
struct NodeSum;

template <>
struct NodeSum<float> {
  uint64_t seed, counter;
  uint32_t tag = 0;  // of no node
  CounterWords<Words32<1>> words;
  float acc[4] = {};
  FS_HD NodeSum(uint64_t seed, uint64_t counter) : seed(seed), counter(counter) {}
  FS_HD void add(const StagedNode<float>& node) {
    if (node.tag != tag) {
      tag = node.tag;
      const Words32<1> low(static_cast<uint32_t>(counter)), high(static_cast<uint32_t>(counter >> 32));
      words = words_of_counter(seed, low, high, tag);
    }
    Words32<1> r[4];
    Floats<1> z[4];
    philox_of_node(words, node.words, seed, r);
    box_muller<Floats<1>, Words32<1>>(r, z);
    FS_UNROLL
    for (int k = 0; k < 4; ++k) acc[k] = fs::fma(node.weight, z[k].v[0], acc[k]);
  }
};

template <>
struct NodeSum<double> {
  uint64_t seed, counter;
  double acc[2] = {};
  FS_HD NodeSum(uint64_t seed, uint64_t counter) : seed(seed), counter(counter) {}
  FS_HD void add(const StagedNode<double>& node) {
    double z[2];
    normals_of_node(seed, counter, node.number, z);
    FS_UNROLL
    for (int k = 0; k < 2; ++k) acc[k] = fs::fma(node.weight, z[k], acc[k]);
  }
};

// How blocks lie over the samples.
struct NodeLayout {
  int64_t chunks, tiles, blocks;  // of a sample; blocks of a sample; blocks in all
  bool vector;                    // whole chunks are stored at once
};

inline NodeLayout lay_out(const BrownianArgs& a) {
  const int64_t size = a.wide ? Chunk<double>::kSize : Chunk<float>::kSize;
  NodeLayout l;
  l.chunks = (a.numel + size - 1) / size;
  l.tiles = (l.chunks + kBlock - 1) / kBlock;
  l.blocks = l.tiles * a.batch;
  l.vector = a.unit && a.numel % size == 0 && a.out.batch_stride % size == 0 &&
             reinterpret_cast<uintptr_t>(a.out.data) % (size * size_of(a.out.dtype)) == 0;
  return l;
}

template <class S>
FS_HD void store_chunk(const BrownianArgs& a, bool vector, int64_t sample, int64_t chunk, const NodeSum<S>& sum) {
  constexpr int kC = Chunk<S>::kSize;
  Words words;
  if (vector) {
    put<S, kC>(words, a.out.dtype, 0, sum.acc);
    return store<S, kC>(a.out.data, a.out.dtype, sample * a.out.batch_stride + chunk * kC, words);
  }
  FS_UNROLL
  for (int k = 0; k < kC; ++k) {
    if (chunk * kC + k >= a.numel) return;
    const S x[1] = {sum.acc[k]};
    put<S, 1>(words, a.out.dtype, 0, x);
    const Place place = place_of(a, chunk * kC + k);
    store<S, 1>(a.out.data, a.out.dtype, offset_in(a.out, place, a.ndim, sample), words);
  }
}

}  // namespace fs::gpu
