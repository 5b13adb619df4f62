// Just enough of CUDA on the host to run a kernel's source: the threads of a block are contexts that take turns at
// __syncthreads(), blocks run one after the other. Races between threads are not found by this, wrong indices are.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace cuda_host {

struct Index {
  int x;
};
inline Index thread, block;
inline ucontext_t scheduler;
inline std::vector<ucontext_t> threads;
inline std::vector<char> dynamic_shared;

template <class T>
T before(T* p, T now) {
  const T old = *p;
  *p = now;
  return old;
}

inline void wait() { swapcontext(&threads[thread.x], &scheduler); }

// Runs body() once per thread of every block.
template <class Body>
void run(int64_t blocks, int count, int64_t shared, const Body& body) {
  constexpr size_t kStack = 256 * 1024;
  static std::vector<std::vector<char>> stacks;
  static const Body* current;
  static std::vector<char> done;
  stacks.resize(count, std::vector<char>(kStack));
  threads.resize(count);
  dynamic_shared.assign(shared + 64, char(0x55));
  current = &body;
  for (int64_t b = 0; b < blocks; ++b) {
    block.x = static_cast<int>(b);
    done.assign(count, 0);
    for (int t = 0; t < count; ++t) {
      getcontext(&threads[t]);
      threads[t].uc_stack.ss_sp = stacks[t].data();
      threads[t].uc_stack.ss_size = kStack;
      threads[t].uc_link = &scheduler;
      void (*entry)() = [] {
        (*current)();
        done[thread.x] = 1;
      };
      makecontext(&threads[t], entry, 0);
    }
    for (int left = count; left > 0;) {
      const int before_turn = left;
      for (int i = 0; i < count; ++i) {
        const int t = b % 2 ? count - 1 - i : i;  // in another order in every other block
        if (done[t]) continue;
        thread.x = t;
        swapcontext(&scheduler, &threads[t]);
        left -= done[t];
      }
      if (left != 0 && left != before_turn) throw std::runtime_error("some threads ended while others wait");
    }
  }
}

}  // namespace cuda_host

#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define FS_DEVICE FS_HD
#define FS_DYNAMIC_SHARED(type, name) \
  type* const name =                  \
      reinterpret_cast<type*>((reinterpret_cast<uintptr_t>(cuda_host::dynamic_shared.data()) + 63) / 64 * 64)
#define threadIdx cuda_host::thread
#define blockIdx cuda_host::block

inline void __syncthreads() { cuda_host::wait(); }
inline void __threadfence() {}
template <class T>
T atomicAdd(T* p, T x) {
  return cuda_host::before(p, static_cast<T>(*p + x));
}
template <class T>
T atomicMax(T* p, T x) {
  return cuda_host::before(p, *p > x ? *p : x);
}
template <class T>
T atomicMin(T* p, T x) {
  return cuda_host::before(p, *p < x ? *p : x);
}
