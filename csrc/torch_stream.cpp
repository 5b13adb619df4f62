// Draws from torch's CPU generators: functions that Python calls with the bytes of a generator and with addresses.
#include "torch_stream.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/isa.h"
#include "cpu/update.h"
#include "torch_bound.h"

namespace fs {

static StreamBlocks stream_loop() { return FS_OF_ISA(stream_blocks); }

static UpdateFromStream update_loop() { return FS_OF_ISA(update_from_stream); }

// Calls loop(begin, end) on parts of `count` pieces of a stream, `numel` normals in all.
template <class F>
static void in_parts(int64_t count, int64_t numel, const F& loop) {
  const int64_t threads = torch::stable::get_num_threads(), worth = 2 * numel / kGrain;
  const int64_t most = threads < worth ? threads : worth, parts = most < kStreamParts ? most : kStreamParts;
  if (parts < 2) return loop(0, count);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    loop(stream_part(count, begin, parts), stream_part(count, end, parts));
  });
}

// The bytes of a generator before a draw, and room for those after it.
struct Draw {
  const void* before;
  void* after;
  int64_t size;
  Mersenne from, to;

  bool begin(int64_t dtype) {
    return size >= static_cast<int64_t>(sizeof(GeneratorBytes)) && dtype >= 1 && dtype <= 3 && read_state(before, from);
  }
  void end() {
    std::memcpy(after, before, size);
    write_state(to, after);
  }
};

}  // namespace fs

// `count` >= 16 contiguous normals (dtype 1: float32, 2: float16, 3: bfloat16) from the bytes of a CPU generator;
// `after` gets its bytes after the draw. 0 if these are not understood; nothing was touched then.
extern "C" __attribute__((visibility("default"))) int fastsample_randn(const void* before, void* after, int64_t size,
                                                                       int64_t dtype, void* out, int64_t count) {
  fs::Draw draw{before, after, size};
  if (count < fs::kStreamBlock || !draw.begin(dtype)) return 0;
  const fs::StreamArgs a{&draw.from, &draw.to, out, static_cast<fs::DType>(dtype), count};
  const fs::StreamBlocks loop = fs::stream_loop();
  fs::in_parts(fs::stream_block_count(a), count, [&](int64_t begin, int64_t end) { loop(a, begin, end); });
  draw.end();
  return 1;
}

// A bound call with some key, whose row takes its noise from the generator in place of it. 0 if nothing was touched
// because these addresses or this state need another way.
extern "C" __attribute__((visibility("default"))) int fastsample_call_with_stream(void* bound, const int64_t* addresses,
                                                                                  const void* before, void* after,
                                                                                  int64_t size, int64_t dtype) {
  auto& call = *static_cast<fs::Bound*>(bound);
  const fs::UpdateArgs& a = call.args;
  if (!a.key || a.wide || a.numel % fs::kStreamBlock || !call.move(addresses)) return 0;
  for (int k = 1; k <= fs::kOutputs; ++k)  // a second noise would be a draw of its own
    if (a.table[*a.step * fs::kColumns + fs::kHi + 4 + k] != 0) return 0;
  fs::Draw draw{before, after, size};
  if (!draw.begin(dtype)) return 0;
  const fs::StreamArgs noise{&draw.from, &draw.to, nullptr, static_cast<fs::DType>(dtype), 0};
  const fs::UpdateFromStream loop = fs::update_loop();
  fs::in_parts(fs::update_tile_count(a), a.batch * a.numel,
               [&](int64_t begin, int64_t end) { loop(a, noise, begin, end); });
  draw.end();
  return 1;
}
