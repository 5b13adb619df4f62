// Which instruction set the CPU loops use: the best the processor has, or the one FASTSAMPLE_CPU_ISA names (for tests).
#pragma once
#include <cstdlib>
#include <cstring>

namespace fs {

enum class Isa { kBase, kAvx2, kAvx512 };

inline Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBase;
}

inline Isa chosen_isa() {
  static const Isa isa = [] {
    const Isa best = best_isa();
    const char* wish = std::getenv("FASTSAMPLE_CPU_ISA");
    if (!wish) return best;
    if (!std::strcmp(wish, "base")) return Isa::kBase;
    if (!std::strcmp(wish, "avx2") && best >= Isa::kAvx2) return Isa::kAvx2;
    return best;
  }();
  return isa;
}

// The build of a function for the chosen instruction set.
#if defined(__x86_64__)
#define FS_OF_ISA(FUNCTION)                            \
  (chosen_isa() == Isa::kAvx512 ? isa_avx512::FUNCTION \
   : chosen_isa() == Isa::kAvx2 ? isa_avx2::FUNCTION   \
                                : isa_base::FUNCTION)
#else
#define FS_OF_ISA(FUNCTION) isa_base::FUNCTION
#endif

inline const char* isa_name(Isa isa) {
#if defined(__aarch64__)
  return "neon";  // of every such processor, so that base is built for it
#else
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "base";
#endif
}

}  // namespace fs
