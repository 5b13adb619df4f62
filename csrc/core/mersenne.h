// MT19937 (Matsumoto and Nishimura, ACM TOMACS 8, 1998), a word at a time: what torch's CPU generator draws from.
#pragma once
#include "macros.h"

namespace fs {

constexpr int kMersenne = 624;     // words of the state
constexpr int kMersenneFar = 397;  // word i of the next state is made of words i, i + 1 and i + 397 of this one

template <class U>
FS_HD U twisted(U here, U next, U far) {
  const U mixed = (here & U(0x80000000u)) ^ (next & U(0x7fffffffu));
  return far ^ (mixed >> 1) ^ ((U(0u) - (next & U(1u))) & U(0x9908b0dfu));
}

template <class U>
FS_HD U tempered(U y) {
  y = y ^ (y >> 11);
  y = y ^ ((y << 7) & U(0x9d2c5680u));
  y = y ^ ((y << 15) & U(0xefc60000u));
  return y ^ (y >> 18);
}

}  // namespace fs
