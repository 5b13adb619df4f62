"""Standard normals from Philox4x32-10, operation by operation as in csrc/core/philox.h and normal.h: the same bits.

Everything is +, x, fma, correctly rounded sqrt and integer operations; the float64 form goes through the library's log,
sin and cos and is equal to rounding only.
"""

# Triton compiles this source text itself: it has no Python types.
# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

# Polynomials of csrc/core/normal.h, highest power first; every constant is a float32.
_RADIUS = tl.constexpr(
    tuple(
        float.fromhex(c)
        for c in (
            "-0x1.1f242ap-2",
            "0x1.3b0e72p-2",
            "-0x1.1ea94ep-2",
            "0x1.503882p-2",
            "-0x1.99d3a8p-2",
            "0x1.00145p-1",
            "-0x1.5554fcp-1",
            "0x1.ffffd6p-1",
        )
    )
)
_COS = tl.constexpr(tuple(map(float.fromhex, ("0x1.d47b48p+5", "-0x1.55b144p+6", "0x1.03c1aep+6", "-0x1.3bd3ccp+4"))))
_SIN = tl.constexpr(tuple(map(float.fromhex, ("-0x1.33504cp+6", "0x1.4681b2p+6", "-0x1.4abc26p+5", "0x1.921fb6p+2"))))
_MINUS_2_LN2 = tl.constexpr(float.fromhex("-0x1.62e43p+0"))


@triton.jit
def _horner(x, coefficients: tl.constexpr, count: tl.constexpr):
    value = tl.full(x.shape, coefficients[0], tl.float32)
    for i in tl.static_range(1, count):
        value = tl.fma(value, x, tl.full(x.shape, coefficients[i], tl.float32))
    return value


@triton.jit
def philox(seed, counter, node=None, third: tl.constexpr = 0):
    """Four words, uint32 blocks, of a uint64 seed (scalar) and uint64 counters (block), or of a node (scalar) there."""
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0) + third, tl.zeros_like(c0)
    if node is not None:  # csrc/core/brownian.h
        c1, c2, c3 = c3 + node.to(tl.uint32), c3 + ((node >> 32).to(tl.uint32) | 0x80000000), c1
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        # One 32 x 32 -> 64 bit multiplication gives both halves; umulhi and mul would be two instructions.
        product0, product1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (product1 >> 32).to(tl.uint32) ^ c1 ^ k0,
            product1.to(tl.uint32),
            (product0 >> 32).to(tl.uint32) ^ c3 ^ k1,
            product0.to(tl.uint32),
        )
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def radius(u):
    """sqrt(-2 log u) for u in (0, 1]."""
    # u = m 2^e, m in [2/3, 4/3), so that near u = 1 nothing cancels.
    shifted = u.to(tl.int32, bitcast=True) - 0x3F2AAAAB
    e = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x007FFFFF) + 0x3F2AAAAB).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f * f, _horner(f, _RADIUS, 8), -2.0 * f)
    return tl.sqrt_rn(tl.fma(e, tl.full(e.shape, _MINUS_2_LN2, tl.float32), p))


@triton.jit
def on_circle(r, u):
    """r cos(2 pi u) and r sin(2 pi u) for u in (0, 1].  The leading r is added last: one rounding less than r * cos."""
    # 1.5 * 2^23 rounds 4u to an integer, the quadrant, in the low bits.
    shifted = tl.fma(u, tl.full(u.shape, 4.0, tl.float32), tl.full(u.shape, 12582912.0, tl.float32))
    quadrant = shifted.to(tl.uint32, bitcast=True)
    f = tl.fma(shifted - 12582912.0, tl.full(u.shape, -0.25, tl.float32), u)  # exact, |f| <= 1/8
    t = f * f
    c = tl.fma(r * t, _horner(t, _COS, 4), r)
    s = _horner(t, _SIN, 4) * (r * f)
    # Quadrant q = 0..3 (mod 4): (c, s), (-s, c), (-c, -s), (s, -c).
    odd = (quadrant & 1) != 0
    zc = tl.where(odd, s, c).to(tl.uint32, bitcast=True) ^ (((quadrant + 1) & 2) << 30)
    zs = tl.where(odd, c, s).to(tl.uint32, bitcast=True) ^ ((quadrant & 2) << 30)
    return zc.to(tl.float32, bitcast=True), zs.to(tl.float32, bitcast=True)


@triton.jit
def _unit(word):
    """A word as a float32 in (0, 1]."""
    x = word.to(tl.float32)
    return tl.fma(x, tl.full(x.shape, 2.0**-32, tl.float32), tl.full(x.shape, 2.0**-33, tl.float32))


@triton.jit
def box_muller(r0, r1, r2, r3):
    """Four words -> four normals, float32."""
    z0, z1 = on_circle(radius(_unit(r0)), _unit(r1))
    z2, z3 = on_circle(radius(_unit(r2)), _unit(r3))
    return z0, z1, z2, z3


@triton.jit
def normals(seed, counter, node=None):
    """Float32 normals ``(4 C,)`` of uint64 counters ``(C,)``: number 4 c + k is the k-th of counter c."""
    r0, r1, r2, r3 = philox(seed, counter, node)
    z0, z1, z2, z3 = box_muller(r0, r1, r2, r3)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (4 * counter.shape[0],))


@triton.jit
def normals_pairs(seed, counter):
    """Float32 normals ``(8 C,)`` of uint64 counters ``(C,)`` and of each one's successor, in that order.

    A thread that holds one counter then holds 8 neighbours, a 16-byte access of 16-bit elements: no shared memory.
    """
    r0, r1, r2, r3 = philox(seed, counter)
    s0, s1, s2, s3 = philox(seed, counter + 1)
    a0, a1, a2, a3 = box_muller(r0, r1, r2, r3)
    b0, b1, b2, b3 = box_muller(s0, s1, s2, s3)
    even = tl.join(tl.join(a0, b0), tl.join(a2, b2))
    odd = tl.join(tl.join(a1, b1), tl.join(a3, b3))
    return tl.reshape(tl.join(even, odd), (8 * counter.shape[0],))


@triton.jit
def unit_wide(a, b):
    """Two words as a float64."""
    # In (0, 1); every product is exact, so fusing or not gives one result.
    return a.to(tl.float64) * (2.0**-32) + (b.to(tl.float64) * (2.0**-64) + 2.0**-65)


@triton.jit
def normals_wide(seed, counter, node=None):
    """Float64 normals ``(2 C,)`` of uint64 counters ``(C,)``: number 2 c + k is the k-th of counter c."""
    r0, r1, r2, r3 = philox(seed, counter, node)
    r = tl.sqrt(-2.0 * tl.log(unit_wide(r0, r1)))
    angle = 6.283185307179586476925 * unit_wide(r2, r3)
    return tl.reshape(tl.join(r * tl.cos(angle), r * tl.sin(angle)), (2 * counter.shape[0],))
