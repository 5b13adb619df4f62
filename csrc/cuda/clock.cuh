// What the update kernel does beside its elements: it writes the network's time and advances the counter of steps. Both
// come before the elements, with the row's own reads of the step: after them they would cost registers all along.
#pragma once
#include "../update_args.h"

namespace fs::gpu {

// One thread of the `width` in each of `blocks` blocks. Counted from the last thread: the first ones stage the row, and
// both wait for the same two loads, one after the other.
FS_HD void write_times(const UpdateArgs& a, const Beside& beside, int64_t block, int64_t blocks, int thread,
                       int width) {
  for (int64_t b = block * width + (width - 1 - thread); b < beside.samples; b += blocks * width)
    write_time(a, beside, b);
}

// One thread of a block that has read its step, and will not again. The last of `blocks` finds that all have: it moves
// the clock. The scratch word counts them and wraps to 0 by itself.
FS_HD void pass_step(int64_t* clock, unsigned blocks) {
#if defined(__CUDA_ARCH__)
  __threadfence();
  if (atomicInc(reinterpret_cast<unsigned*>(clock + 1), blocks - 1) != blocks - 1) return;
  __threadfence();
#else
  clock[1] = clock[1] + 1 == blocks ? 0 : clock[1] + 1;
  if (clock[1] != 0) return;
#endif
  ++clock[0];
}

}  // namespace fs::gpu
