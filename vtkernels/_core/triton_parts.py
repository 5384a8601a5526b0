"""Device functions that the Triton kernels of several ops share: products in float32, and what dropout keeps."""

import triton
import triton.language as tl


@triton.jit
def _nearest_tf32(x):
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _two_parts(x, EXACT: tl.constexpr):
    """x as a sum of two numbers: the nearest that TF32 holds, and the rest, of which TF32 holds all but the last bit.

    Rounded, not cut: the products of two rests, which nobody adds, would have one sign, and add up. Of the rest tensor cores cut that bit off, with
    one sign too, unless EXACT rounds it before.
    """
    high = _nearest_tf32(x)
    low = x - high
    if EXACT:
        low = _nearest_tf32(low)
    return high, low


@triton.jit
def product(a, b, PRECISION: tl.constexpr, onto=None, TRANSPOSED: tl.constexpr = False, EXACT: tl.constexpr = False):
    """a b, or a b^T, added onto what there is.

    "split tf32" is what `tl.dot` makes of "tf32x3", except that this looks for infinities in every operand and sum,
    with up to a third of a kernel's instructions. Here infinities become NaN, as in the softmax between the products.
    EXACT is for products whose errors are added up before they are scores.
    """
    if PRECISION == "split tf32":
        a_high, a_low = _two_parts(a, EXACT)
        b_high, b_low = _two_parts(b, EXACT)
        # parts first: where b itself is an operand too, they are made once
        if TRANSPOSED:
            b_high, b_low = tl.trans(b_high), tl.trans(b_low)
        onto = tl.dot(a_low, b_high, onto, input_precision="tf32")
        onto = tl.dot(a_high, b_low, onto, input_precision="tf32")
        found = tl.dot(a_high, b_high, onto, input_precision="tf32")
    else:
        found = tl.dot(a, tl.trans(b) if TRANSPOSED else b, onto, input_precision=PRECISION)
    return found


@triton.jit
def dropout_keeps(seed, item, element, keep_threshold):
    """Which probabilities dropout keeps: the counter is (element, item low, item high, 0), as in the references."""
    element = element.to(tl.uint32)
    zero = element * 0
    low = zero + (item & 0xFFFFFFFF).to(tl.uint32)
    high = zero + (item >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, element, low, high, zero, 10)
    return word < keep_threshold.to(tl.uint32)
