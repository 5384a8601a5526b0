"""SwinV2's block of microsoft/Swin-Transformer, as in `swin_transformer.py` of this folder."""

import math

import torch
from official import swin_transformer as v1
from torch import Tensor, nn
from torch.nn import functional as F


class WindowAttention(nn.Module):
    def __init__(self, dim: int, window_size: tuple[int, int], num_heads: int):
        super().__init__()
        self.dim, self.window_size, self.num_heads, self.pretrained_window_size = dim, window_size, num_heads, (0, 0)
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, num_heads, bias=False))
        offsets = 8 * torch.arange(1.0 - window_size[0], window_size[0]) / (window_size[0] - 1)
        grid = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), -1)[None]
        self.register_buffer("relative_coords_table", grid.sign() * (grid.abs() + 1).log2() / 3)
        self.register_buffer("relative_position_index", v1.relative_index(window_size[0]))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.attn_drop, self.proj, self.proj_drop, self.softmax = nn.Dropout(0.0), nn.Linear(dim, dim), nn.Dropout(0.0), nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.logit_scale.clamp(max=math.log(100.0)).exp()
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        scores = scores + 16 * torch.sigmoid(table[self.relative_position_index].permute(2, 0, 1))
        if mask is not None:
            scores = (scores.unflatten(0, (-1, mask.shape[0])) + mask[:, None]).flatten(0, 1)
        x = self.attn_drop(self.softmax(scores)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Mlp(v1.Mlp):
    pass


class SwinTransformerBlock(nn.Module):
    def __init__(self, dim: int, input_resolution: tuple[int, int], num_heads: int, window_size: int = 7, shift_size: int = 0):
        super().__init__()
        self.dim, self.input_resolution, self.num_heads = dim, input_resolution, num_heads
        self.window_size, self.shift_size = window_size, shift_size
        self.norm1, self.attn = nn.LayerNorm(dim), WindowAttention(dim, (window_size, window_size), num_heads)
        self.drop_path, self.norm2, self.mlp = nn.Identity(), nn.LayerNorm(dim), Mlp(dim, 4 * dim)
        self.register_buffer("attn_mask", v1.shift_mask(*input_resolution, window_size, shift_size) if shift_size else None)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.norm1(v1.SwinTransformerBlock._windowed(self, x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))
