// The CUDA update kernel as an op on the host: every block, every thread, in turn. Built by test_cuda_body.py.
#include <vector>

#include "cuda/choose.h"
#include "cuda/clock.cuh"
#include "cuda/variants.h"
#include "torch_args.h"

namespace {

using namespace fs;
using namespace fs::gpu;

struct OnHost {
  using Kernel = void (*)(const UpdateArgs&, const gpu::Layout&, const Beside&);
  template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
  static void run(const UpdateArgs& a, const gpu::Layout& l, const Beside& beside) {
    std::vector<Staged<S>> rows(l.rows);
    for (int64_t block = 0; block < l.blocks; ++block) {
      for (int t = 0; beside.time != nullptr && t < l.threads; ++t)
        write_times(a, beside, block, l.blocks, t, l.threads);
      for (int i = 0; i < l.rows * kColumns; ++i) stage_entry(a, l, rows.data(), block, i);
      if (beside.clock != nullptr) pass_step(beside.clock, static_cast<unsigned>(l.blocks));
      for (int t = 0; t < l.threads; ++t) update_thread<S, T, kK, kO, kNoise, kVector>(a, l, rows.data(), block, t);
    }
  }
  template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
  static Kernel of() {
    return run<S, T, kK, kO, kNoise, kVector>;
  }
};

}  // namespace

// Returns the elements a thread takes at once, negative on the general path.
static int64_t update_body(Tensors outs, Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key,
                           Tensors noise, int64_t processors, std::optional<Tensor> time, std::optional<Tensor> clock,
                           int64_t threads, int64_t fill, int64_t turns) {
  Beside beside;
  const UpdateArgs a = make_update_args(outs, terms, table, step, key, noise, time, clock, beside);
  if (a.batch == 0 || a.numel == 0) return 0;
  const Variant wish = {static_cast<int32_t>(threads), static_cast<int32_t>(fill), static_cast<int32_t>(turns), false};
  STD_TORCH_CHECK(threads == 0 || exists(wish), "there is no such variant");
  forced_variant() = wish;
  const auto choice = choose<OnHost>(a);
  const int64_t staged = a.wide ? sizeof(Staged<double>) : sizeof(Staged<float>);
  const fs::gpu::Layout l = lay_out(a, (a.numel + choice.elements - 1) / choice.elements, staged,
                                    static_cast<int>(processors), variant_of(a));
  STD_TORCH_CHECK(l.rows * staged <= kStagedBytes, "staged rows do not fit");
  choice.kernel(a, l, beside);
  const bool general = choice.kernel == OnHost::of<float, Mixed<1>, kTerms, kOutputs, kKeyed, false>() || a.wide;
  return general ? -choice.elements : choice.elements;
}

STABLE_TORCH_LIBRARY(fastsample_body, m) {
  m.def(
      "update_(Tensor(a!)[] outs, Tensor[] terms, Tensor table, Tensor step, Tensor? key, Tensor[] noise, "
      "int processors, Tensor(b!)? time=None, Tensor(c!)? clock=None, "
      "int threads=0, int fill=0, int turns=0) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(fastsample_body, CPU, m) { m.impl("update_", TORCH_BOX(&update_body)); }
