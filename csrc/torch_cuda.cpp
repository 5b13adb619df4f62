// The CUDA implementation of the ops, against the libtorch stable ABI. No CUDA header and no CUDA build of torch
// needed.
//
// Build (T = the folder of the torch package, ARCHS = 75 80 86 90 100 120):
//   nvcc -std=c++17 -O3 -fmad=false -Xcompiler -fPIC,-fvisibility=hidden -Xfatbin=-compress-all
//        -gencode arch=compute_A,code=sm_A (for each A) -gencode arch=compute_90,code=compute_90
//        -c csrc/cuda/update.cu -o update.o                     (likewise the other .cu files)
//   g++ -std=c++20 -O2 -fPIC -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020a000000000000 -I$T/include
//       -c csrc/torch_cuda.cpp -o torch_cuda.o
//   echo | gcc -shared -x c - -Wl,-soname,libtorch_cuda.so -o stub/libtorch_cuda.so      (only if $T/lib has none)
//   g++ -shared *.o -o libfastsample_cuda.so -L$T/lib -ltorch_cpu -lc10
//       -Wl,--no-as-needed -Lstub -ltorch_cuda -L<cuda>/lib64 -lcudart_static -lrt -lpthread -ldl
//       -Wl,--exclude-libs,ALL
// -fmad=false: the fma of csrc/core are written out, and nothing else may be contracted.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/launch.h"
#include "torch_args.h"
#include "torch_brownian.h"
#include "torch_metropolis.h"
#include "torch_reduce.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// In libtorch_cuda; shim.h declares it only for CUDA builds.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace fs {

static void advance_cuda(Tensors outs, Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key,
                         Tensors noise, std::optional<Tensor> time, std::optional<Tensor> clock) {
  Beside beside;
  const UpdateArgs a = make_update_args(outs, terms, table, step, key, noise, time, clock, beside);
  const int32_t device = outs[0].get_device_index();
  const auto here = [&](const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.is_cuda() && x.get_device_index() == device, name, ": must be on cuda:", device, " like outs[0]");
  };
  for (const Tensor& x : outs) here(x, "outs");
  for (const Tensor& x : terms) here(x, "terms");
  for (const Tensor& x : noise) here(x, "noise");
  here(table, "table");
  here(step, "step");
  if (key) here(*key, "key");
  if (time) here(*time, "time");
  if (clock) here(*clock, "clock");
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  launch_update(a, beside, device, static_cast<CUstream_st*>(stream));
}

static void update_cuda(Tensors outs, Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key,
                        Tensors noise) {
  advance_cuda(std::move(outs), std::move(terms), std::move(table), std::move(step), std::move(key), std::move(noise),
               std::nullopt, std::nullopt);
}

static void brownian_cuda(Tensor out, Tensor key, Tensor nodes, Tensor weights, Tensor step) {
  const BrownianArgs a = make_brownian_args(out, key, nodes, weights, step);
  const int32_t device = out.get_device_index();
  for (const Tensor* x : {&out, &key, &nodes, &weights, &step})
    STD_TORCH_CHECK(x->is_cuda() && x->get_device_index() == device,
                    "out, key, nodes, weights, step: all must be on one CUDA device");
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  launch_brownian(a, static_cast<CUstream_st*>(stream));
}

static void check_reduce(int32_t device, const Tensors& terms, const Tensor& table, const Tensor& step) {
  const auto here = [&](const Tensor& x) { return x.is_cuda() && x.get_device_index() == device; };
  for (const Tensor& x : terms) STD_TORCH_CHECK(here(x), "terms: must be on cuda:", device, " like rows");
  STD_TORCH_CHECK(here(table) && here(step), "table, step: must be on cuda:", device, " like rows");
}

// From torch's allocator, so that a captured graph keeps it.
static Tensor workspace(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

static void threshold_cuda(Tensor rows, Tensors terms, Tensor table, Tensor step, double ratio, double low,
                           double high) {
  const ThresholdArgs a = make_threshold_args(rows, terms, table, step, ratio, low, high);
  const int32_t device = rows.get_device_index();
  check_reduce(device, terms, table, step);
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const Tensor memory = workspace(rows, threshold_workspace(a, device));
  launch_threshold(a, memory.data_ptr(), device, static_cast<CUstream_st*>(stream));
}

static void rescale_cuda(Tensor rows, Tensors terms, Tensor table, Tensor step, int64_t cond, int64_t uncond) {
  const RescaleArgs a = make_rescale_args(rows, terms, table, step, cond, uncond);
  const int32_t device = rows.get_device_index();
  check_reduce(device, terms, table, step);
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const Tensor memory = workspace(rows, rescale_workspace(a));
  launch_rescale(a, memory.data_ptr(), static_cast<CUstream_st*>(stream));
}

static void metropolis_cuda(Tensor state, Tensor cache, Tensors outs, Tensor chain, Tensor proposal, Tensor fresh,
                            Tensors terms, Tensor table, Tensor step, std::optional<Tensor> key, Tensors noise,
                            std::optional<Tensor> uniform) {
  const MetropolisArgs a =
      make_metropolis_args(state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform);
  const int32_t device = state.get_device_index();
  const auto here = [&](const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.is_cuda() && x.get_device_index() == device, name, ": must be on cuda:", device, " like state");
  };
  here(cache, "cache"), here(chain, "chain"), here(proposal, "proposal"), here(fresh, "fresh");
  for (const Tensor& x : outs) here(x, "outs");
  for (const Tensor& x : terms) here(x, "terms");
  for (const Tensor& x : noise) here(x, "noise");
  here(table, "table"), here(step, "step");
  if (key) here(*key, "key");
  if (uniform) here(*uniform, "uniform");
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const Tensor memory = workspace(state, metropolis_workspace(a, device));
  launch_metropolis(a, memory.data_ptr(), device, static_cast<CUstream_st*>(stream));
}

}  // namespace fs

STABLE_TORCH_LIBRARY_IMPL(fastsample, CUDA, m) {
  m.impl("update_", TORCH_BOX(&fs::update_cuda));
  m.impl("advance_", TORCH_BOX(&fs::advance_cuda));
  m.impl("brownian_", TORCH_BOX(&fs::brownian_cuda));
  m.impl("threshold_", TORCH_BOX(&fs::threshold_cuda));
  m.impl("rescale_", TORCH_BOX(&fs::rescale_cuda));
  m.impl("metropolis_", TORCH_BOX(&fs::metropolis_cuda));
}
