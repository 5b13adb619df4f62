// Runs the body of the CUDA update kernel on the host: every block, every thread, in turn. Built by test_cuda_body.py.
#include <vector>

#include "cuda/choose.h"

namespace {

using namespace fs;
using namespace fs::gpu;

struct OnHost {
  using Kernel = void (*)(const UpdateArgs&, const Layout&);
  template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
  static void run(const UpdateArgs& a, const Layout& l) {
    std::vector<Staged<S>> rows(l.rows);
    for (int64_t block = 0; block < l.blocks; ++block) {
      for (int i = 0; i < l.rows * kColumns; ++i) stage_entry(a, l, rows.data(), block, i);
      for (int t = 0; t < kBlock; ++t) update_thread<S, T, kK, kO, kNoise, kVector>(a, l, rows.data(), block, t);
    }
  }
  template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
  static Kernel of() {
    return run<S, T, kK, kO, kNoise, kVector>;
  }
};

}  // namespace

// Returns the elements of a piece: 8 or 4 on the vector path of 16-bit tensors, and so on.
extern "C" int fastsample_run_body(const UpdateArgs* a, int processors) {
  const auto choice = choose<OnHost>(*a);
  const int64_t staged = a->wide ? sizeof(Staged<double>) : sizeof(Staged<float>);
  const Layout l = lay_out(*a, (a->numel + choice.elements - 1) / choice.elements, staged, processors);
  if (l.rows * staged > kStagedBytes) return -1;
  choice.kernel(*a, l);
  return choice.elements;
}

extern "C" int fastsample_args_bytes() { return sizeof(UpdateArgs); }

extern "C" void fastsample_core_normals(uint64_t seed, uint64_t counter, int64_t chunks, float* out) {
  for (int64_t c = 0; c < chunks; ++c) normals_at(seed, counter + c, out + 4 * c);
}
extern "C" void fastsample_core_normals64(uint64_t seed, uint64_t counter, int64_t chunks, double* out) {
  for (int64_t c = 0; c < chunks; ++c) normals_at(seed, counter + c, out + 2 * c);
}
