// The CUDA kernel of `brownian` as an op on the host: every block, every thread, in turn. Built by
// test_brownian_body.py.
#include <vector>

#include "cuda/brownian.cuh"
#include "torch_brownian.h"

namespace {

using namespace fs;
using namespace fs::gpu;

template <class S>
void run(const BrownianArgs& a, const NodeLayout& l) {
  for (int64_t block = 0; block < l.blocks; ++block) {
    const int64_t sample = block / l.tiles, first_chunk = (block - sample * l.tiles) * kBlock;
    std::vector<NodeSum<S>> sums;
    for (int t = 0; t < kBlock; ++t)
      sums.emplace_back(a.key[2 * sample], a.key[2 * sample + 1] + static_cast<uint64_t>(first_chunk + t));
    for (int64_t first = 0; first == 0 || first < a.width; first += kBlock) {
      StagedNode<S> nodes[kBlock];
      for (int t = 0; t < kBlock; ++t) stage_node(a, sample, first + t, nodes[t]);
      int n = 0;
      for (; n < kBlock && !nodes[n].ends(); ++n)
        for (NodeSum<S>& sum : sums) sum.add(nodes[n]);
      if (n < kBlock) break;
    }
    for (int t = 0; t < kBlock && first_chunk + t < l.chunks; ++t)
      store_chunk(a, l.vector, sample, first_chunk + t, sums[t]);
  }
}

}  // namespace

// Returns whether whole chunks were stored at once.
static bool brownian_body(Tensor out, Tensor key, Tensor nodes, Tensor weights, Tensor step) {
  const BrownianArgs a = make_brownian_args(out, key, nodes, weights, step);
  const NodeLayout l = lay_out(a);
  if (a.wide)
    run<double>(a, l);
  else
    run<float>(a, l);
  return l.vector;
}

STABLE_TORCH_LIBRARY(fastsample_brownian_body, m) {
  m.def("brownian_(Tensor(a!) out, Tensor key, Tensor nodes, Tensor weights, Tensor step) -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(fastsample_brownian_body, CPU, m) { m.impl("brownian_", TORCH_BOX(&brownian_body)); }
