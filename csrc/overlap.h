// Whether strided tensors share memory. fastsample/ops/overlap.py is the same in Python.
#pragma once
#include <cstdint>

namespace fs {

// Differences of addresses, in bytes, between the elements of two tensors, or between those of one: a distance, plus
// for each distinct stride a multiple of it within a range. The search goes from the largest stride down, and at each
// tries the multiples from which the smaller strides can still come near. Where dimensions nest these are one or two.
class Differences {
 public:
  void add(int64_t stride, int64_t least, int64_t most) {
    if (stride == 0 || least == most) return;
    int i = 0;
    while (i < count_ && level_[i].stride > stride) ++i;
    if (i == count_ || level_[i].stride != stride) {
      for (int j = count_++; j > i; --j) level_[j] = level_[j - 1];
      level_[i] = {stride, 0, 0};
    }
    level_[i].least += least, level_[i].most += most;
  }

  // Is a difference strictly between low and high, moved: other than by adding nothing? True if the search is too long.
  bool any(int64_t distance, int64_t low, int64_t high, bool moved) {
    int64_t below = low, above = high;  // the bounds, less what the strides from here on can add
    for (int i = count_ - 1; i >= 0; --i) {
      level_[i].low = below, level_[i].high = above;
      below -= level_[i].most * level_[i].stride, above -= level_[i].least * level_[i].stride;
    }
    left_ = kLongest;
    return distance > below && distance < above && search(0, distance, moved);
  }

 private:
  static constexpr int kLevels = 32, kLongest = 1000;
  struct Level {
    int64_t stride, least, most, low, high;
  };

  static int64_t floor_div(int64_t x, int64_t y) { return x / y - (x % y < 0); }

  bool search(int i, int64_t distance, bool moved) {
    if (i == count_) return !moved;
    const Level& l = level_[i];
    int64_t first = floor_div(l.low - distance, l.stride) + 1, last = floor_div(l.high - distance - 1, l.stride);
    if (first < l.least) first = l.least;
    if (last > l.most) last = l.most;
    if ((left_ -= last - first + 1) < 0) return true;
    for (int64_t k = first; k <= last; ++k)
      if (search(i + 1, distance + k * l.stride, moved && k == 0)) return true;
    return false;
  }

  Level level_[kLevels];  // strides descend
  int count_ = 0;
  int64_t left_ = 0;
};

// Do two elements of one tensor share memory?
inline bool overlaps_itself(const int64_t* sizes, const int64_t* strides, int dims) {
  Differences within;
  for (int d = 0; d < dims; ++d) {
    if (sizes[d] <= 1) continue;
    if (strides[d] == 0) return true;
    for (int e = 0; e < d; ++e)
      if (sizes[e] > 1 && strides[e] == strides[d]) return true;  // one step there and one back
    within.add(strides[d], 1 - sizes[d], sizes[d] - 1);
  }
  return within.any(0, -1, 1, true);
}

// Do two tensors of one shape share a byte? Strides in elements; the second begins `distance` bytes after the first.
inline bool share_memory(const int64_t* sizes, int dims, const int64_t* strides, int64_t bytes,
                         const int64_t* other_strides, int64_t other_bytes, int64_t distance) {
  Differences between;
  for (int d = 0; d < dims; ++d) {
    between.add(strides[d] * bytes, 1 - sizes[d], 0);
    between.add(other_strides[d] * other_bytes, 0, sizes[d] - 1);
  }
  return between.any(distance, -other_bytes, bytes, false);
}

}  // namespace fs
