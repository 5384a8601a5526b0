"""What every backend of talking-heads attention shares: the call."""

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """One call after validation, the same for the forward and the backward of every backend."""

    qkv: Tensor  # [B, N, 3 * h * D]
    pre_weight: Tensor  # [h, h]
    pre_bias: Tensor | None  # [h]
    post_weight: Tensor  # [h, h]
    post_bias: Tensor | None  # [h]
    num_heads: int
    scale: float
    dropout_p: float
    seed: int

    @property
    def channels(self) -> int:
        return self.qkv.shape[2] // 3

    @property
    def head_dim(self) -> int:
        return self.qkv.shape[2] // 3 // self.num_heads

    @property
    def tokens(self) -> int:
        return self.qkv.shape[1]
