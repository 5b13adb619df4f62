// Just enough of CUDA on the host to run a kernel's source: the threads of a block are contexts that take turns at
// barriers. The blocks of a cluster are alive together, each with dynamic shared memory of its own; clusters run one
// after the other. Races between threads are not found by this, wrong indices and unequal barriers are.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace cuda_host {

enum State : char { kRuns, kAtBlock, kAtCluster, kDone };  // of a thread: what it waits for

struct Index {
  int x;
};
inline Index thread, block;
inline int rank, per_block;  // of the running block in its cluster; threads of a block
inline ucontext_t scheduler;
inline std::vector<ucontext_t> threads;  // of all blocks of a cluster
inline std::vector<State> states;
inline std::vector<std::vector<char>> shared_memory;  // by block of the cluster

inline char* shared_of(int r) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared_memory[r].data()) + 63) / 64 * 64);
}

template <class T>
T before(T* p, T now) {
  const T old = *p;
  *p = now;
  return old;
}

inline void wait(State at) {
  const int self = rank * per_block + thread.x;
  states[self] = at;
  swapcontext(&threads[self], &scheduler);
}

// Lets threads [begin, end) go on if all of them are at the barrier.
inline bool release(int begin, int end, State at) {
  for (int i = begin; i < end; ++i)
    if (states[i] != at) return false;
  for (int i = begin; i < end; ++i) states[i] = kRuns;
  return true;
}

// Runs body() once per thread of every block; `cluster` divides `blocks`.
template <class Body>
void run(int64_t blocks, int count, int64_t shared, const Body& body, int cluster = 1) {
  constexpr size_t kStack = 64 * 1024;
  static std::vector<std::vector<char>> stacks;
  static const Body* current;
  const int all = cluster * count;
  if (static_cast<int>(stacks.size()) < all) stacks.resize(all, std::vector<char>(kStack));
  threads.resize(all);
  shared_memory.assign(cluster, std::vector<char>(shared + 64, char(0x55)));
  current = &body;
  per_block = count;
  for (int64_t first = 0; first < blocks; first += cluster) {
    states.assign(all, kRuns);
    for (int i = 0; i < all; ++i) {
      getcontext(&threads[i]);
      threads[i].uc_stack.ss_sp = stacks[i].data();
      threads[i].uc_stack.ss_size = kStack;
      threads[i].uc_link = &scheduler;
      void (*entry)() = [] {
        (*current)();
        states[rank * per_block + thread.x] = kDone;
      };
      makecontext(&threads[i], entry, 0);
    }
    for (bool left = true; left;) {
      for (int turn = 0; turn < all; ++turn) {
        const int i = first / cluster % 2 ? all - 1 - turn : turn;  // in another order in every other cluster
        if (states[i] != kRuns) continue;
        rank = i / count, thread.x = i % count, block.x = static_cast<int>(first) + rank;
        swapcontext(&scheduler, &threads[i]);
      }
      left = false;
      for (const State state : states) left |= state != kDone;
      bool moved = release(0, all, kAtCluster);
      for (int r = 0; r < cluster; ++r) moved |= release(r * count, (r + 1) * count, kAtBlock);
      if (left && !moved) throw std::runtime_error("threads wait for others that ended, or wait elsewhere");
    }
  }
}

}  // namespace cuda_host

#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define FS_DEVICE FS_HD
#define FS_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(cuda_host::shared_of(cuda_host::rank))
#define threadIdx cuda_host::thread
#define blockIdx cuda_host::block

inline void __syncthreads() { cuda_host::wait(cuda_host::kAtBlock); }
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

namespace fs::gpu {

inline void cluster_arrive() {}  // the wait is a barrier by itself
inline void cluster_wait() { cuda_host::wait(cuda_host::kAtCluster); }
inline double read_of(const double* own, int rank) {
  const char* p = reinterpret_cast<const char*>(own);
  return *reinterpret_cast<const double*>(cuda_host::shared_of(rank) + (p - cuda_host::shared_of(cuda_host::rank)));
}
template <int kBytes>
void copy_async(void* shared, const void* global) {
  std::memcpy(shared, global, kBytes);
}
inline void copies_wait() {}

}  // namespace fs::gpu
