// The search of `threshold` on the CPU: which passes over a sample find its quantile, and how threads share them.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../core/select.h"
#include "threshold.h"

namespace fs {

// A sample of at most kGather elements takes one pass. Else a pass settles a digit of v_k, until at most kGather
// elements share the digits known: one more pass gathers them. So float32 is read at most twice, float64 mostly.
// parallel(parts, f) calls f(part) for all parts of a pass, in any order and thread: the result is the same.
template <class S, class Parallel>
class Search {
 public:
  using Word = typename Pattern<S>::Word;

  Search(const ThresholdArgs& args, const ThresholdLoops& loops, int64_t parts, const Parallel& parallel)
      : a_(args), loops_(loops), parallel_(parallel), parts_(parts), bins_(parts), gathered_(parts) {}

  // The quantile of a sample with at least one element.
  double quantile(int64_t sample) {
    const Rank rank = rank_of(a_.ratio, a_.numel);
    uint64_t lo = 0, hi = Pattern<S>::kLast;
    int64_t from_top = rank.from_top, count = a_.numel;
    Found found;
    for (int level = 0;; ++level) {
      const int shift = count <= kGather ? -1 : shift_of<S>(level);
      run(sample, {lo, hi, from_top, shift});
      uint64_t greatest = 0, above = Pattern<S>::kLast;
      for (const Pass& p : parts_) greatest = std::max(greatest, p.greatest), above = std::min(above, p.above);
      if (greatest > Pattern<S>::kInfinity) return static_cast<double>(NAN);
      if (shift < 0) {
        found = loops_.found(a_.wide, join(), count, from_top);
        if (from_top == 1) found.next = above;
        break;
      }
      const int64_t digit = settle(from_top, count);
      lo += static_cast<uint64_t>(digit) << shift;
      hi = lo + ((uint64_t(1) << shift) - 1);
      if (shift > 0) continue;
      found = {lo, from_top > 1 ? lo : next_digit(digit, lo, above)};
      break;
    }
    return interpolate(value_of(static_cast<Word>(found.value)), value_of(static_cast<Word>(found.next)),
                       rank.fraction);
  }

 private:
  struct Free {
    void operator()(uint32_t* p) const { std::free(p); }
  };
  using Bins = std::unique_ptr<uint32_t, Free>;

  void run(int64_t sample, const Pass& asked) {
    const int64_t parts = static_cast<int64_t>(parts_.size()), size = (a_.numel + parts - 1) / parts;
    parallel_(parts, [&](int64_t i) {
      Pass p = asked;
      p.memory = asked.shift < 0 ? static_cast<void*>(words_of(i)) : static_cast<void*>(bins_of(i));
      loops_.pass(a_, sample, std::min(i * size, a_.numel), std::min((i + 1) * size, a_.numel), p);
      parts_[i] = p;
    });
  }

  Word* words_of(int64_t i) {
    if (i == 0) return first_;
    if (!gathered_[i]) gathered_[i].reset(new Word[kGather]);
    return gathered_[i].get();
  }

  // Zeros: the digits that the pass before has counted are cleared.
  uint32_t* bins_of(int64_t i) {
    if (!bins_[i]) {
      bins_[i].reset(static_cast<uint32_t*>(std::calloc(kBins, sizeof(uint32_t))));
      if (!bins_[i]) throw std::bad_alloc();
    } else {
      std::fill(bins_[i].get() + used_[i].first, bins_[i].get() + used_[i].second, 0u);
    }
    return bins_[i].get();
  }

  // Where all parts gathered side by side.
  const Word* join() {
    int64_t n = parts_[0].kept;
    for (size_t i = 1; i < parts_.size(); n += parts_[i++].kept)
      std::copy(gathered_[i].get(), gathered_[i].get() + parts_[i].kept, first_ + n);
    return first_;
  }

  // The digit of v_k; then the rank and the count are those among the elements that share it.
  int64_t settle(int64_t& from_top, int64_t& count) {
    used_.resize(parts_.size());
    int64_t digit = 0, kept = 0;
    for (const Pass& p : parts_) digit = std::max(digit, p.floor);
    for (size_t i = 0; i < parts_.size(); ++i) {
      const Pass& p = parts_[i];
      kept += p.kept;
      for (int64_t d = p.floor; d < digit; ++d) kept -= bins_[i].get()[d];
      const int64_t last = p.greatest < p.lo ? 0 : static_cast<int64_t>((p.greatest - p.lo) >> p.shift);
      used_[i] = {p.first, std::min<int64_t>(last, kBins - 1) + 1};
      used_[i].first = std::min(used_[i].first, used_[i].second);
    }
    while (kept - (count = total(digit)) >= from_top) kept -= count, ++digit;
    from_top -= kept - count;
    return digit;
  }

  int64_t total(int64_t digit) const {
    int64_t n = 0;
    for (const Bins& bins : bins_) n += bins.get()[digit];
    return n;
  }

  // The least pattern above that of a digit of the last level.
  uint64_t next_digit(int64_t digit, uint64_t pattern, uint64_t above) const {
    for (int64_t d = digit + 1; d < kBins; ++d)
      if (total(d) > 0) return pattern + static_cast<uint64_t>(d - digit);
    return above;
  }

  const ThresholdArgs& a_;
  ThresholdLoops loops_;
  const Parallel& parallel_;
  std::vector<Pass> parts_;
  std::vector<Bins> bins_;
  std::vector<std::pair<int64_t, int64_t>> used_;  // digits counted by each part, from and to
  std::vector<std::unique_ptr<Word[]>> gathered_;
  Word first_[kGather];
};

}  // namespace fs
