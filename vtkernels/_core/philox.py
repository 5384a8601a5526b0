"""Philox4x32-10, the counter-based generator of every random op, on tensors of counters.

Counter-based, so that every backend and device draws the same numbers from (seed, counter), in any order.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def _mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # 16-bit halves: a 32 x 32 bit product does not fit a signed 64-bit integer
    a_hi, a_lo = a >> 16, a & 0xFFFF
    b_hi, b_lo = b >> 16, b & 0xFFFF
    low = a_lo * b_lo
    middle = a_hi * b_lo + (low >> 16)
    middle2 = a_lo * b_hi + (middle & 0xFFFF)
    high = a_hi * b_hi + (middle >> 16) + (middle2 >> 16)
    return high & _MASK, ((middle2 << 16) | (low & 0xFFFF)) & _MASK


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (as int64 tensors) for each counter (c0, c1, c2, c3) under the 64-bit key `seed`."""
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        hi0, lo0 = _mul_hi_lo(_M0, c0)
        hi1, lo1 = _mul_hi_lo(_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def keep_threshold(dropout_p: float) -> int:
    """A 32-bit word below this keeps its element."""
    return min(round((1.0 - dropout_p) * 2**32), 2**32 - 1)


def draw_seed() -> int:
    """A seed from torch's default generator of the CPU, for callers who gave none; another default device would have to be waited for."""
    return int(torch.randint(2**62, (1,), dtype=torch.int64, device="cpu"))
