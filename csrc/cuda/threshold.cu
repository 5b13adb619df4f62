// fastsample::threshold_ on CUDA: the launches.
#include "choose_select.h"
#include "enqueue.h"
#include "launch.h"

namespace fs {
namespace {

constexpr const char* kOp = "fastsample::threshold_";
constexpr int kDeclared = 4096;  // bytes of shared memory that threshold_small declares, and some

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  gpu::Enqueue{kOp, nullptr}.check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

gpu::SelectPlan plan(const ThresholdArgs& a, int device) {
  return gpu::plan_select(a, attribute(cudaDevAttrMultiProcessorCount, device),
                          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - kDeclared);
}

}  // namespace

int64_t threshold_workspace(const ThresholdArgs& a, int device) { return plan(a, device).workspace; }

void launch_threshold(const ThresholdArgs& a, void* memory, int device, CUstream_st* stream) {
  gpu::check_sizes(a, kOp);
  gpu::run_threshold(a, plan(a, device), static_cast<char*>(memory), gpu::Enqueue{kOp, stream});
}

}  // namespace fs
