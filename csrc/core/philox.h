// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): four words of a 64-bit key and a 64-bit counter.
#pragma once
#include "macros.h"

namespace fs {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // steps of the key

// Rounds kDone..9. U is uint32_t or SIMD lanes of it; all lanes share the key.
template <int kDone, class U>
FS_HD void philox_rounds(U c0, U c1, U c2, U c3, uint64_t key, U r[4]) {
  uint32_t k0 = static_cast<uint32_t>(key) + kDone * kPhiloxW0;
  uint32_t k1 = static_cast<uint32_t>(key >> 32) + kDone * kPhiloxW1;
  FS_UNROLL
  for (int round = kDone; round < 10; ++round) {
    U hi0, lo0, hi1, lo1;
    mul_wide(c0, kPhiloxM0, hi0, lo0);
    mul_wide(c2, kPhiloxM1, hi1, lo1);
    c0 = hi1 ^ c1 ^ U(k0);
    c1 = lo1;
    c2 = hi0 ^ c3 ^ U(k1);
    c3 = lo0;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  r[0] = c0, r[1] = c1, r[2] = c2, r[3] = c3;
}

// Words of a 64-bit counter; the high half of Philox's counter is zero.
template <class U>
FS_HD void philox(U c0, U c1, uint64_t key, U r[4]) {
  philox_rounds<0>(c0, c1, U(0u), U(0u), key, r);
}

FS_HD void philox_at(uint64_t key, uint64_t counter, uint32_t r[4]) {
  philox(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), key, r);
}

// Uniform in [0, 1): 24 bits of a word.
FS_HD float uniform(uint32_t word) { return to_float(word & 0xffffffu) * 0x1p-24f; }

// 64 bits of two words as a uniform in (0, 1), for normals of float64 states.
FS_HD double uniform_wide(uint32_t a, uint32_t b) { return a * 0x1p-32 + (b * 0x1p-64 + 0x1p-65); }

}  // namespace fs
