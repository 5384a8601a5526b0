"""microsoft/Swin-Transformer's block by its published equations: same file, class, attribute and parameter names, other words."""

import torch
from torch import Tensor, nn


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B * windows, N, C]"""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def to_map(x: Tensor, window: int, height: int, width: int) -> Tensor:
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """[windows, N, N]: -100 between regions that the shift brought together."""
    region = torch.zeros(1, height, width, 1)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
        region[:, rows, columns] = number
    region = to_windows(region, window)[..., 0]
    return -100.0 * (region[:, None] != region[:, :, None]).float()


def relative_index(window: int) -> Tensor:
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    return (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1


class Mlp(nn.Module):
    def __init__(self, in_features: int, hidden_features: int, drop: float = 0.0):
        super().__init__()
        self.fc1, self.act, self.fc2, self.drop = nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, in_features), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class WindowAttention(nn.Module):
    def __init__(self, dim: int, window_size: tuple[int, int], num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        self.dim, self.window_size, self.num_heads, self.scale = dim, window_size, num_heads, (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window_size[0] - 1) * (2 * window_size[1] - 1), num_heads))
        self.register_buffer("relative_position_index", relative_index(window_size[0]))
        self.qkv, self.attn_drop = nn.Linear(dim, 3 * dim), nn.Dropout(attn_drop)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(proj_drop)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        windows, tokens, _ = x.shape
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q * self.scale @ k.mT + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            scores = (scores.unflatten(0, (-1, mask.shape[0])) + mask[:, None]).flatten(0, 1)
        x = self.attn_drop(self.softmax(scores)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class SwinTransformerBlock(nn.Module):
    def __init__(self, dim: int, input_resolution: tuple[int, int], num_heads: int, window_size: int = 7, shift_size: int = 0, attn_drop: float = 0.0):
        super().__init__()
        self.dim, self.input_resolution, self.num_heads = dim, input_resolution, num_heads
        self.window_size, self.shift_size, self.fused_window_process = window_size, shift_size, False
        self.norm1, self.attn = nn.LayerNorm(dim), WindowAttention(dim, (window_size, window_size), num_heads, attn_drop)
        self.drop_path, self.norm2, self.mlp = nn.Identity(), nn.LayerNorm(dim), Mlp(dim, 4 * dim)
        self.register_buffer("attn_mask", shift_mask(*input_resolution, window_size, shift_size) if shift_size else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self._windowed(self.norm1(x))
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _windowed(self, x: Tensor) -> Tensor:
        height, width = self.input_resolution
        shift = (self.shift_size, self.shift_size)
        x = x.unflatten(1, (height, width)).roll([-s for s in shift], (1, 2))
        x = self.attn(to_windows(x, self.window_size), mask=self.attn_mask)
        return to_map(x, self.window_size, height, width).roll(shift, (1, 2)).flatten(1, 2)
