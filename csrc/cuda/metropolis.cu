// fastsample::metropolis_ on CUDA: the launches.
#include <atomic>

#include "choose_form.h"
#include "enqueue.h"
#include "launch.h"

namespace fs {
namespace {

constexpr const char* kOp = "fastsample::metropolis_";

// The largest cluster whose blocks may have all shared memory; less than usual where a part of a GPU is lent.
int largest_cluster(int device, int64_t shared, const gpu::Enqueue& on) {
  int clusters = 0;
  on.check(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device));
  if (clusters == 0) return 1;
  const auto kernel = gpu::metropolis_held<float, gpu::Mixed<gpu::kChainPiece>>;
  on.check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  cudaLaunchConfig_t config = {};
  config.gridDim = gpu::kLargestCluster, config.blockDim = gpu::kBlock, config.dynamicSmemBytes = shared;
  int most = 1;
  on.check(cudaOccupancyMaxPotentialClusterSize(&most, kernel, &config));
  return most < 1 ? 1 : most < gpu::kLargestCluster ? most : gpu::kLargestCluster;
}

gpu::Machine machine(int device) {
  constexpr int kRemembered = 64;
  static std::atomic<int> known[kRemembered][3] = {};
  const bool remembered = device < kRemembered;
  if (remembered && known[device][2].load(std::memory_order_acquire))
    return {known[device][0], known[device][1], known[device][2]};
  const gpu::Enqueue on{kOp, nullptr};
  int processors = 0, shared = 0;
  on.check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  on.check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const int cluster = largest_cluster(device, shared, on);
  if (remembered) {
    known[device][0] = processors, known[device][1] = shared;
    known[device][2].store(cluster, std::memory_order_release);
  }
  return {processors, shared, cluster};
}

}  // namespace

int64_t metropolis_workspace(const MetropolisArgs& a, int device) {
  const gpu::Machine m = machine(device);
  return gpu::hold(a, m).cluster > 0 ? 0 : gpu::share(a, m).workspace(a);
}

void launch_metropolis(const MetropolisArgs& a, void* memory, int device, CUstream_st* stream) {
  gpu::check_sizes(a, kOp);
  const gpu::Machine m = machine(device);
  gpu::run_metropolis(a, gpu::hold(a, m), gpu::share(a, m), static_cast<double*>(memory), gpu::Enqueue{kOp, stream});
}

}  // namespace fs
