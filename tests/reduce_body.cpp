// The CUDA kernels of threshold and rescale as ops on the host. Built by test_reduce_body.py.
#include "cuda_host.h"
// after it
#include "cuda/choose_select.h"
#include "cuda/rescale.cuh"
#include "torch_reduce.h"

namespace {

using namespace fs;

struct OnHost {
  void clear(void* memory, int64_t bytes) const { std::memset(memory, 0, bytes); }
  template <class... P, class... A>
  void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared, const A&... arguments) const {
    cuda_host::run(blocks, threads, shared, [&] { kernel(arguments...); });
  }
};

}  // namespace

// Returns how many samples a launch takes, 0 with one block per sample.
static int64_t threshold_body(Tensor rows, Tensors terms, Tensor table, Tensor step, double ratio, double low,
                              double high, int64_t processors, int64_t shared_limit, bool many) {
  const ThresholdArgs a = make_threshold_args(rows, terms, table, step, ratio, low, high);
  gpu::SelectPlan p = gpu::plan_select(a, static_cast<int>(processors), shared_limit);
  if (many && !p.small) p.many = true, p.workspace += p.at_once * p.counts;  // 64-bit counts
  std::vector<uint64_t> memory(p.workspace / 8 + 1, 0x5555555555555555u);
  gpu::run_threshold(a, p, reinterpret_cast<char*>(memory.data()), OnHost());
  return p.at_once;
}

static int64_t rescale_body(Tensor rows, Tensors terms, Tensor table, Tensor step, int64_t cond, int64_t uncond) {
  const RescaleArgs a = make_rescale_args(rows, terms, table, step, cond, uncond);
  std::vector<Moments> memory(a.batch * gpu::moment_blocks(a) + 1);
  gpu::run_rescale(a, memory.data(), OnHost());
  return gpu::moment_blocks(a);
}

STABLE_TORCH_LIBRARY(fastsample_reduce_body, m) {
  m.def(
      "threshold_(Tensor(a!) rows, Tensor[] terms, Tensor table, Tensor step, float ratio, float low, float high, "
      "int processors, int shared_limit, bool many) -> int");
  m.def("rescale_(Tensor(a!) rows, Tensor[] terms, Tensor table, Tensor step, int cond, int uncond) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(fastsample_reduce_body, CPU, m) {
  m.impl("threshold_", TORCH_BOX(&threshold_body));
  m.impl("rescale_", TORCH_BOX(&rescale_body));
}
