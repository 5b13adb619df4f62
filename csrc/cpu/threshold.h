// The passes of `threshold` on the CPU, one build of them per instruction set, and the search that uses them.
#pragma once
#include "../reduce_args.h"

namespace fs {

constexpr int64_t kGather = 4096;  // so few elements are kept and searched bit by bit

// A pass over elements [begin, end) of a sample. Patterns are those of core/select.h.
struct Pass {
  // What is asked.
  uint64_t lo, hi;         // the range that holds v_k
  int64_t from_top;        // v_k is the from_top-th largest of the range
  int shift;               // of the digit to count; < 0: gather the patterns of the range instead
  void* memory = nullptr;  // kBins uint32_t counts per digit, zero at first; or kGather words
  // What is found.
  uint64_t greatest = 0;  // pattern of all
  uint64_t above = 0;     // least pattern above the range
  int64_t first = 0,
          floor = 0;  // digits below `floor` are counted no longer, for v_k is not there; it began as `first`
  int64_t kept = 0;   // elements of the range with a digit >= floor; gathered ones
};

// From gathered patterns: the from_top-th largest, and the next larger one if from_top > 1.
struct Found {
  uint64_t value, next;
};

#define FS_DECLARE_ISA(NAME)                                                                           \
  namespace NAME {                                                                                     \
  void threshold_pass(const ThresholdArgs& args, int64_t sample, int64_t begin, int64_t end, Pass& p); \
  Found threshold_found(bool wide, const void* patterns, int64_t n, int64_t from_top);                 \
  }
FS_DECLARE_ISA(isa_base)
FS_DECLARE_ISA(isa_avx2)
FS_DECLARE_ISA(isa_avx512)
#undef FS_DECLARE_ISA

struct ThresholdLoops {
  void (*pass)(const ThresholdArgs&, int64_t, int64_t, int64_t, Pass&);
  Found (*found)(bool, const void*, int64_t, int64_t);
};

}  // namespace fs
