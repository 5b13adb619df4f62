// Prints, for every point, which instantiation of the update kernel a call of it gets, and what the kernel would find
// in its parameters and in shared memory. A host program: the choice, the arguments and the staged rows are the real
// ones.
//   points TURNS, the pieces of a thread. A line: dtype terms outputs noise instance elements parameters shared
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/choose.h"

using namespace fs;
using namespace fs::gpu;

namespace {

template <class T>
struct Storage;
template <int kE>
struct Storage<Mixed<kE>> {
  static std::string name() { return "5Mixed-x-" + std::to_string(kE); }
};
template <DType kType, int kE>
struct Storage<All<kType, kE>> {
  static std::string name() { return "3All-" + std::to_string(static_cast<int>(kType)) + "-" + std::to_string(kE); }
};
template <class T>
struct Storage<Alike<T>> {
  static std::string name() { return "5Alike-" + Storage<T>::name(); }
};

// An instantiation is its name here.
struct Names {
  using Kernel = std::string;
  template <class S, class T, int kK, int kO, Noise kNoise, bool kVector>
  static std::string of() {
    return std::string(std::is_same_v<S, float> ? "f" : "d") + "-" + Storage<T>::name() + "-" + std::to_string(kK) +
           "-" + std::to_string(kO) + "-" + std::to_string(kNoise) + "-" + std::to_string(kVector);
  }
};

void hex(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) std::printf("%02x", static_cast<const unsigned char*>(data)[i]);
}

struct Point {
  const char* name;
  DType state, others;
};

// Tensor n has its own 64 GiB, so that the address of a load says which tensor it is of.
Operand tensor(int n, DType type) { return {reinterpret_cast<void*>((n + 1LL) << 36), 0, {1}, type}; }

template <class S>
void print(const UpdateArgs& a, const Layout& l) {
  std::vector<Staged<S>> rows(1);
  for (int i = 0; i < kColumns; ++i) stage_entry(a, l, rows.data(), 0, i);
  struct {
    UpdateArgs args;
    Layout layout;
    Beside beside;
  } parameters;
  std::memset(&parameters, 0, sizeof parameters);
  parameters.args = a, parameters.layout = l;
  hex(&parameters, sizeof parameters);
  std::printf(" ");
  hex(rows.data(), sizeof(Staged<S>));
  std::printf("\n");
}

// A row that needs everything there is: all weights but the limits of D, and one noise.
void point(const Point& p, int terms, int outputs, const char* noise, int64_t turns) {
  static double row[kColumns];
  static const int64_t step = 0;
  static const uint64_t key[2] = {1, 0};
  for (double& x : row) x = 0;
  for (int j = 0; j < terms; ++j)
    for (int c = 0; c <= outputs; ++c) row[4 * j + c] = 0.5;
  for (int k = 0; k < outputs; ++k) row[kLo + 1 + k] = row[kHi + 1 + k] = 0.5;
  row[kLo] = -INFINITY, row[kHi] = INFINITY;
  UpdateArgs a = {};
  a.n_terms = terms, a.n_outs = outputs, a.ndim = 1, a.unit = true, a.batch = 1;
  for (int j = 0; j < terms; ++j) a.terms[j] = tensor(j, j == 0 ? p.state : p.others);
  for (int k = 0; k < outputs; ++k) a.outs[k] = tensor(kTerms + k, p.state);
  a.wide = p.state == DType::kF64;
  if (std::strcmp(noise, "given") == 0) a.n_noises = 1, a.noise[0] = tensor(kTerms + kOutputs, p.state);
  if (std::strcmp(noise, "keyed") == 0) a.n_noises = kNoises, a.key = key;
  if (std::strcmp(noise, "none") == 0)
    for (int k = 0; k < outputs; ++k) row[kHi + 1 + k] = 0;
  a.table = row, a.rows = 1, a.step = &step;
  a.numel = turns * kBlock * 8;
  const auto choice = choose<Names>(a);
  a.size[0] = a.numel = turns * kBlock * choice.elements;
  a.chunks = a.numel / (a.wide ? 2 : 4);
  const Layout l = {turns * kBlock, 1, kBlock, 1, 1, kBlock, 0, 1};
  std::printf("%s %d %d %s %s %d ", p.name, terms, outputs, noise, choice.kernel.c_str(), choice.elements);
  a.wide ? print<double>(a, l) : print<float>(a, l);
}

}  // namespace

int main(int, char** arguments) {
  const Point points[] = {{"fp32", DType::kF32, DType::kF32},
                          {"bf16", DType::kBF16, DType::kBF16},
                          {"fp16", DType::kF16, DType::kF16},
                          {"fp32+bf16", DType::kF32, DType::kBF16},
                          {"fp64", DType::kF64, DType::kF64}};
  for (const Point& p : points)
    for (int terms = 1; terms <= kTerms; ++terms)
      for (int outputs = 1; outputs <= kOutputs; ++outputs)
        for (const char* noise : {"none", "given", "keyed"}) point(p, terms, outputs, noise, std::atoll(arguments[1]));
}
