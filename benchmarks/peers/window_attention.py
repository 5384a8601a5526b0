"""The other ways to run Swin's attention, each as its authors would have it in a model.

A peer is a function (x, qkv_windows, table) -> (x_windows, out): it shifts and partitions the map before the qkv
projection, attends, merges and shifts back. The projections themselves belong to neither side. `build` makes one for a
problem and a phase; what stays the same from call to call (index, mask, and for SDPA and Flex in evaluation the dense
bias) is computed there, not in the call.
"""

from collections.abc import Callable

import torch
from attn_problem import Problem, merge, partition
from torch import Tensor
from torch.nn import functional as F

Peer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Unavailable(Exception):
    """Why a peer cannot run here."""


def relative_position_index(window: int) -> Tensor:
    """[N, N] rows of the bias table, as Swin builds it."""
    coordinates = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    relative = (coordinates[:, :, None] - coordinates[:, None, :]).permute(1, 2, 0) + window - 1
    return relative[..., 0] * (2 * window - 1) + relative[..., 1]


def region_ids(size: int, window: int, shift: int, device: str, dtype: torch.dtype) -> Tensor:
    """[windows, N]: which of the nine pieces of the unshifted map a token comes from."""
    image = torch.zeros(1, size, size, 1, device=device, dtype=dtype)
    pieces = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in pieces for columns in pieces):
        image[:, rows, columns, :] = number
    return partition(image, window)[..., 0]


def shift_mask(size: int, window: int, shift: int, device: str, dtype: torch.dtype) -> Tensor:
    """[windows, N, N]: -100 between tokens of different pieces."""
    regions = region_ids(size, window, shift, device, dtype)
    difference = regions.unsqueeze(1) - regions.unsqueeze(2)
    return difference.masked_fill(difference != 0, -100.0).masked_fill(difference == 0, 0.0)


class Frame:
    """What the peers share: index and mask, the way into windows and back, and the published arithmetic."""

    def __init__(self, problem: Problem):
        self.shape = shape = problem.shape
        self.logit_scale = problem.logit_scale
        self.scale = (shape.channels // shape.heads) ** -0.5 if self.logit_scale is None else 1.0
        self.index = relative_position_index(shape.window).to(problem.device)
        self.make_mask = lambda: shift_mask(shape.size, shape.window, shape.shift, problem.device, problem.dtype)
        self.mask = self.make_mask() if shape.shift else None

    def roll(self, x: Tensor, direction: int) -> Tensor:
        distance = direction * self.shape.shift
        return torch.roll(x, shifts=(distance, distance), dims=(1, 2)) if distance else x

    def enter(self, x: Tensor) -> Tensor:
        return partition(self.roll(x, -1), self.shape.window)

    def leave(self, out: Tensor) -> Tensor:
        """[B * windows, h, N, D] -> [B, H, W, C]"""
        windows = out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)
        return self.roll(merge(windows, self.shape.window, self.shape.size, self.shape.size), 1)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B * windows, N, 3C] -> three of [B * windows, h, N, D]; rows of SwinV2's queries and keys normalised, and queries scaled"""
        q, k, v = qkv.reshape(*qkv.shape[:2], 3, self.shape.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.logit_scale is not None:
            q, k = F.normalize(q, dim=-1) * self.logit_scale[:, None, None], F.normalize(k, dim=-1)
        return q, k, v

    def dense_bias(self, table: Tensor) -> Tensor:
        """[1, h, N, N]"""
        tokens = self.shape.tokens
        return table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous().unsqueeze(0)

    def attend(self, qkv: Tensor, table: Tensor, mask: Tensor | None) -> Tensor:
        """Products, bias, mask and softmax as Microsoft, timm and torchvision all write them."""
        heads, tokens = self.shape.heads, self.shape.tokens
        q, k, v = self.split(qkv)
        scores = (q * self.scale) @ k.transpose(-2, -1) + self.dense_bias(table)
        if mask is not None:
            scores = scores.view(-1, mask.shape[0], heads, tokens, tokens) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, heads, tokens, tokens)
        return scores.softmax(-1) @ v

    def bias_of_every_window(self, table: Tensor) -> Tensor:
        """Bias and mask in one: [1 or B * windows, h, N, N]"""
        bias = self.dense_bias(table)
        if self.mask is None:
            return bias
        shape = self.shape
        mask = self.mask.view(1, shape.windows, 1, shape.tokens, shape.tokens).expand(shape.batch, -1, shape.heads, -1, -1)
        return bias + mask.reshape(-1, shape.heads, shape.tokens, shape.tokens)


def eager(problem: Problem, phase: str) -> Peer:
    """microsoft/Swin-Transformer, models/swin_transformer.py; the mask is a buffer of the block."""
    frame = Frame(problem)

    def run(x: Tensor, qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        return frame.enter(x), frame.leave(frame.attend(qkv, table, frame.mask))

    return run


def timm(problem: Problem, phase: str) -> Peer:
    """timm 1.0, fused_attn off; it pads after the shift, which copies the map even where nothing is padded."""
    frame = Frame(problem)

    def run(x: Tensor, qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        x_windows = partition(F.pad(frame.roll(x, -1), (0, 0, 0, 0, 0, 0)), frame.shape.window)
        return x_windows, frame.leave(frame.attend(qkv, table, frame.mask))

    return run


def timm_sdpa(problem: Problem, phase: str) -> Peer:
    """timm 1.0, fused_attn on: SDPA; bias and mask are added up for every window of the batch in every call."""
    frame = Frame(problem)

    def run(x: Tensor, qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        x_windows = partition(F.pad(frame.roll(x, -1), (0, 0, 0, 0, 0, 0)), frame.shape.window)
        q, k, v = frame.split(qkv)
        return x_windows, frame.leave(F.scaled_dot_product_attention(q, k, v, attn_mask=frame.bias_of_every_window(table), scale=frame.scale))

    return run


def torchvision(problem: Problem, phase: str) -> Peer:
    """torchvision 0.28, shifted_window_attention; it pads before the shift and builds the mask in every call."""
    frame = Frame(problem)

    def run(x: Tensor, qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        x_windows = frame.enter(F.pad(x, (0, 0, 0, 0, 0, 0)))
        mask = frame.make_mask() if frame.shape.shift else None
        return x_windows, frame.leave(frame.attend(qkv, table, mask))

    return run


def sdpa(problem: Problem, phase: str) -> Peer:
    """SDPA without timm's overhead: in evaluation bias and mask are made once; training has to follow the table."""
    frame = Frame(problem)
    with torch.no_grad():
        ready = frame.bias_of_every_window(problem.table) if phase == "forward" else None

    def run(x: Tensor, qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        x_windows = frame.enter(x)
        q, k, v = frame.split(qkv)
        bias = frame.bias_of_every_window(table) if ready is None else ready
        return x_windows, frame.leave(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=frame.scale))

    return run


def flex(problem: Problem, phase: str) -> Peer:
    """FlexAttention: bias and mask enter as a score function, compiled into the kernel together with the copies around it."""
    from torch.nn.attention.flex_attention import flex_attention

    if phase == "training" and problem.device == "cpu":
        raise Unavailable("FlexAttention has no backward on the CPU")
    shape, frame = problem.shape, Frame(problem)
    regions = region_ids(shape.size, shape.window, shape.shift, problem.device, torch.int32) if shape.shift else None
    with torch.no_grad():
        ready = frame.dense_bias(problem.table)[0] if phase == "forward" else None

    def run(x: Tensor, qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        bias = frame.dense_bias(table)[0] if ready is None else ready

        def score(value: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            value = value + bias[head, query, key]
            if regions is None:
                return value
            window = window % shape.windows
            return torch.where(regions[window, query] == regions[window, key], value, value - 100.0)

        x_windows = frame.enter(x)
        return x_windows, frame.leave(flex_attention(*frame.split(qkv), score_mod=score, scale=frame.scale))

    return _compiled(run, problem.device)


def inductor(problem: Problem, phase: str) -> Peer:
    """torch.compile of the published path."""
    return _compiled(eager(problem, phase), problem.device)


def inductor_sdpa(problem: Problem, phase: str) -> Peer:
    """torch.compile of the SDPA path."""
    return _compiled(sdpa(problem, phase), problem.device)


def _compiled(run: Peer, device: str) -> Peer:
    if not torch._dynamo.is_dynamo_supported():
        raise Unavailable("torch.compile does not support this Python or platform")
    # the generated C++ fixes the thread count: named, it is part of the compiler cache's key
    return torch.compile(run, dynamic=False, options={"cpp.threads": torch.get_num_threads()} if device == "cpu" else None)


PEERS = {peer.__name__: peer for peer in (eager, timm, timm_sdpa, torchvision, sdpa, flex, inductor, inductor_sdpa)}
