"""Whether strided tensors share memory.  csrc/overlap.h is the same in C++."""

from __future__ import annotations

from torch import Tensor

_LONGEST = 1000

# The differences of addresses, in bytes, between the elements of two tensors, or between those of one, are a distance
# plus for each distinct stride a multiple of it within a range: {stride: [least, most]}.
_Ranges = dict[int, list[int]]


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of ``x`` share memory; True too where the search would take too long."""
    ranges: _Ranges = {}
    for size, stride in zip(x.shape, x.stride(), strict=True):
        if size <= 1:
            continue
        if stride == 0 or stride in ranges:  # one step there and one back
            return x.numel() > 0
        ranges[stride] = [1 - size, size - 1]
    return x.numel() > 0 and _any(ranges, 0, -1, 1, moved=True)


def share_memory(x: Tensor, y: Tensor, distance: int) -> bool:
    """Whether ``x`` and ``y``, which begins ``distance`` bytes later, share a byte; True too if the search is long.

    Both must have elements; shapes, strides and dtypes are free.
    """
    ranges: _Ranges = {}
    for tensor, end, sign in ((x, 0, -1), (y, 1, 1)):
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            if size > 1 and stride:
                ranges.setdefault(stride * tensor.element_size(), [0, 0])[end] += sign * (size - 1)
    return _any(ranges, distance, -y.element_size(), x.element_size(), moved=False)


def _any(ranges: _Ranges, distance: int, low: int, high: int, moved: bool) -> bool:
    """Whether a difference is strictly between ``low`` and ``high``; ``moved``: not counting all multiples zero.

    From the largest stride down, each time trying the multiples from which the smaller strides can still come near:
    where dimensions nest these are one or two.
    """
    levels: list[tuple[int, int, int, int, int]] = []
    for stride, (least, most) in sorted(ranges.items()):
        levels.append((stride, least, most, low, high))
        low, high = low - most * stride, high - least * stride
    if not low < distance < high:
        return False
    left = _LONGEST
    open_ends = [(len(levels), distance, moved)]
    while open_ends:
        level, distance, still = open_ends.pop()
        if level == 0:
            if not still:
                return True
            continue
        stride, least, most, low, high = levels[level - 1]
        first, last = max(least, (low - distance) // stride + 1), min(most, (high - distance - 1) // stride)
        left -= max(0, last - first + 1)
        if left < 0:
            return True
        open_ends += [(level - 1, distance + k * stride, still and k == 0) for k in range(first, last + 1)]
    return False
