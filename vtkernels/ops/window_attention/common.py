"""What every backend of window attention shares: the call, and the geometry of windows on a map."""

from typing import NamedTuple

from torch import Tensor

# Up to this many tokens a row of scores fits one tile, and the backward recomputes its maximum and sum for nothing;
# above, the forward saves them.
LARGEST_TILE = 64


class Call(NamedTuple):
    """One call after validation, the same for the forward and the backward of every backend."""

    qkv: Tensor  # [B, H, W, 3 * h * D]
    bias_table: Tensor | None  # [(2 * Wh - 1) * (2 * Ww - 1), h]
    bias: Tensor | None  # [h, N, N]
    logit_scale: Tensor | None  # [h]
    qkv_bias: Tensor | None  # [3 * h * D]
    num_heads: int
    window: tuple[int, int]
    shift: tuple[int, int]
    scale: float
    mask_padding: bool
    shift_first: bool
    dropout_p: float
    seed: int

    @property
    def channels(self) -> int:
        return self.qkv.shape[3] // 3

    @property
    def head_dim(self) -> int:
        return self.qkv.shape[3] // 3 // self.num_heads

    @property
    def tokens(self) -> int:
        """Tokens of one window, N."""
        return self.window[0] * self.window[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Windows along each axis of the padded map."""
        (window_h, window_w), (_, height, width, _) = self.window, self.qkv.shape
        return -(-height // window_h), -(-width // window_w)

    @property
    def padded(self) -> bool:
        (grid_h, grid_w), (_, height, width, _) = self.grid, self.qkv.shape
        return (grid_h * self.window[0], grid_w * self.window[1]) != (height, width)


def statistics_shape(call: Call) -> tuple[int, ...]:
    """Shape of what the forward saves per row: [0] = m and [1] = 1 / l with P = exp(S - m) / l; empty for small windows."""
    if call.tokens <= LARGEST_TILE:
        return (0,)
    grid_h, grid_w = call.grid
    return (2, call.qkv.shape[0], grid_h * grid_w, call.num_heads, call.tokens)
