// The loops of `brownian` on the CPU. Compiled once per instruction set with -DFS_ISA=<name>; see brownian.h.
// A tile is a run of elements of one sample; the sum over the nodes of a query stays in registers.
#include "brownian.h"

#include <vector>

#include "../core/brownian.h"
#include "simd.h"

namespace fs {
namespace FS_ISA {
namespace {

// A query ready for use: its nodes for one seed.
template <class S>
struct Query {
  struct Node {
    NodeWords words;
    uint64_t number;
    S weight;
  };
  std::vector<Node> nodes;
  int64_t step = -1;
  uint64_t seed = 0;

  void prepare(const BrownianArgs& a, int64_t new_step, uint64_t new_seed) {
    if (step == new_step && seed == new_seed) return;
    step = new_step, seed = new_seed;
    nodes.clear();
    for (int64_t n = step * a.width; n < (step + 1) * a.width && a.nodes[n] != 0; ++n) {
      const uint64_t number = static_cast<uint64_t>(a.nodes[n]);
      nodes.push_back({words_of_node(seed, number), number, static_cast<S>(a.weights[n])});
    }
  }
};

// One chunk, plainly: for float64 and where the low word of the counter wraps inside a vector.
template <class S>
void one_chunk(const Query<S>& query, uint64_t counter, S* out) {
  constexpr int kSize = Chunk<S>::kSize;
  S sum[kSize] = {}, z[kSize];
  for (const auto& node : query.nodes) {
    normals_of_node(query.seed, counter, node.number, z);
    for (int k = 0; k < kSize; ++k) sum[k] = fs::fma(node.weight, z[k], sum[k]);
  }
  for (int k = 0; k < kSize; ++k) out[k] = sum[k];
}

// Sums for `n` elements from a chunk boundary on; writes up to 64 more.
void sums(const Query<float>& query, uint64_t counter, int64_t n, float* out) {
  constexpr int kWidth = U32::kWidth;
  for (int64_t i = 0; i < n; i += 4 * kWidth, counter += kWidth) {
    const uint32_t low = static_cast<uint32_t>(counter);
    if (low + static_cast<uint32_t>(kWidth - 1) < low) {  // the low word wraps inside this vector
      for (int c = 0; c < kWidth; ++c) one_chunk(query, counter + c, out + i + 4 * c);
      continue;
    }
    const U32 lows = U32(low) + chunk_of_lane(), high(static_cast<uint32_t>(counter >> 32));
    F32 z[4], sum[4] = {F32(0.0f), F32(0.0f), F32(0.0f), F32(0.0f)};
    CounterWords<U32> words;
    uint32_t tag = 0;  // of no node
    for (const auto& node : query.nodes) {
      if (tag_of(node.number) != tag) words = words_of_counter(query.seed, lows, high, tag = tag_of(node.number));
      U32 r[4];
      philox_of_node(words, node.words, query.seed, r);
      box_muller<F32, U32>(r, z);
      FS_UNROLL
      for (int k = 0; k < 4; ++k) sum[k] = fma(F32(node.weight), z[k], sum[k]);
    }
    store_chunks(out + i, sum);
  }
}
void sums(const Query<double>& query, uint64_t counter, int64_t n, double* out) {
  for (int64_t i = 0; i < n; i += 2) one_chunk(query, counter++, out + i);
}

template <class S>
void put(const Operand& o, int64_t at, S x) {
  switch (o.dtype) {
    case DType::kF64:
      static_cast<double*>(o.data)[at] = x;
      break;
    case DType::kF32:
      static_cast<float*>(o.data)[at] = static_cast<float>(x);
      break;
    case DType::kBF16:
      static_cast<u16*>(o.data)[at] = store_bf16(static_cast<float>(x));
      break;
    default:
      static_cast<u16*>(o.data)[at] = store_f16(static_cast<float>(x));
  }
}

// A dense run: whole vectors, then the rest.
template <class S>
int64_t put_vectors(const Operand& o, int64_t at, int64_t n, const S* from) {
  if constexpr (sizeof(S) == 4) {
    const int64_t whole = n / F32::kWidth * F32::kWidth;
    for (int64_t i = 0; i < whole; i += F32::kWidth) {
      const F32 x = load_f32(from + i);
      if (o.dtype == DType::kF32)
        store_f32(static_cast<float*>(o.data) + at + i, x);
      else if (o.dtype == DType::kBF16)
        store_bf16x(static_cast<u16*>(o.data) + at + i, x);
      else
        store_f16x(static_cast<u16*>(o.data) + at + i, x);
    }
    return whole;
  }
  return 0;
}

// Logical elements [i0, i0 + n) of a sample from a dense buffer to where they belong.
template <class S>
void scatter(const BrownianArgs& a, int64_t sample, int64_t i0, int64_t n, const S* from) {
  const int last = a.ndim - 1;
  for (int64_t done = 0; done < n;) {
    int64_t rest = (i0 + done) / a.size[last], at = sample * a.out.batch_stride;
    const int64_t inner = (i0 + done) % a.size[last], left = a.size[last] - inner;
    for (int d = last - 1; d >= 0; rest /= a.size[d--]) at += rest % a.size[d] * a.out.stride[d];
    const int64_t run = left < n - done ? left : n - done, stride = a.out.stride[last];
    const int64_t whole = stride == 1 ? put_vectors(a.out, at + inner, run, from + done) : 0;
    for (int64_t i = whole; i < run; ++i) put(a.out, at + (inner + i) * stride, from[done + i]);
    done += run;
  }
}

template <class S>
void run(const BrownianArgs& a, int64_t begin, int64_t end) {
  alignas(64) S buffer[kBrownianTile + 64];
  const int64_t per_sample = (a.numel + kBrownianTile - 1) / kBrownianTile;
  Query<S> query;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t sample = tile / per_sample, i0 = tile % per_sample * kBrownianTile;
    const int64_t n = a.numel - i0 < kBrownianTile ? a.numel - i0 : kBrownianTile;
    query.prepare(a, a.step[a.per_sample_step ? sample : 0], a.key[2 * sample]);
    sums(query, a.key[2 * sample + 1] + i0 / Chunk<S>::kSize, n, buffer);
    scatter(a, sample, i0, n, buffer);
  }
}

}  // namespace

void brownian_tiles(const BrownianArgs& a, int64_t begin, int64_t end) {
  if (a.wide)
    run<double>(a, begin, end);
  else
    run<float>(a, begin, end);
}

}  // namespace FS_ISA
}  // namespace fs
