// The CUDA kernels of metropolis as an op on the host. Built by test_metropolis_body.py.
#include "cuda_host.h"
// after it
#include "cuda/choose_form.h"
#include "torch_metropolis.h"

namespace {

using namespace fs;

struct OnHost {
  template <class... P, class... A>
  void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared, const A&... arguments) const {
    cuda_host::run(blocks, threads, shared, [&] { kernel(arguments...); });
  }
  template <class... P, class... A>
  void launch_clusters(void (*kernel)(P...), int64_t blocks, int cluster, int threads, int64_t shared,
                       const A&... arguments) const {
    cuda_host::run(blocks, threads, shared, [&] { kernel(arguments...); }, cluster);
  }
};

}  // namespace

// Returns the thread blocks that share a sample in one launch, 0 with two launches, negative if element by element
// (less 1 then, so that 0 is told apart).
static int64_t metropolis_body(Tensor state, Tensor cache, Tensors outs, Tensor chain, Tensor proposal, Tensor fresh,
                               Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key, Tensors noise,
                               std::optional<Tensor> uniform, int64_t processors, int64_t shared, int64_t cluster) {
  const MetropolisArgs a =
      make_metropolis_args(state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform);
  const gpu::Machine m{static_cast<int>(processors), shared, static_cast<int>(cluster)};
  const gpu::HeldPlan held = gpu::hold(a, m);
  const gpu::TwoPlan two = gpu::share(a, m);
  std::vector<double> memory(two.workspace(a) / 8 + 1, NAN);
  gpu::run_metropolis(a, held, two, memory.data(), OnHost());
  return a.wide || !gpu::in_pieces(a) ? -1 - held.cluster : held.cluster;
}

STABLE_TORCH_LIBRARY(fastsample_metropolis_body, m) {
  m.def(
      "metropolis_(Tensor(a!) state, Tensor(b!) cache, Tensor(c!)[] outs, Tensor(d!) chain, Tensor proposal, "
      "Tensor fresh, Tensor[] terms, Tensor table, Tensor step, Tensor? key, Tensor[] noise, Tensor? uniform, "
      "int processors, int shared, int cluster) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(fastsample_metropolis_body, CPU, m) { m.impl("metropolis_", TORCH_BOX(&metropolis_body)); }
