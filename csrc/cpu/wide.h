// Eight lanes of float64 side by side; the compiler splits them where registers are shorter. For sums over lanes.
// Compiled once per instruction set (FS_ISA).
#pragma once
#include "../core/macros.h"

namespace fs {
namespace FS_ISA {
namespace {

constexpr int kWide = 8;
typedef double Doubles __attribute__((vector_size(8 * kWide)));
typedef float Singles __attribute__((vector_size(4 * kWide), aligned(4)));
typedef double Unaligned __attribute__((vector_size(8 * kWide), aligned(8)));

FS_HD Doubles widen(const float* x) { return __builtin_convertvector(*reinterpret_cast<const Singles*>(x), Doubles); }
FS_HD Doubles widen(const double* x) { return *reinterpret_cast<const Unaligned*>(x); }

}  // namespace
}  // namespace FS_ISA
}  // namespace fs
