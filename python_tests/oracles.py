"""Window attention as others publish it: what the op is compared with."""

import math

import torch
from torch import Tensor, nn


def position_index(window: int) -> Tensor:
    """[N, N] rows of the bias table, built from coordinates as the published models do."""
    coordinates = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    relative = (coordinates[:, :, None] - coordinates[:, None, :]).permute(1, 2, 0) + window - 1
    return relative[..., 0] * (2 * window - 1) + relative[..., 1]


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """[windows, N, N] of 0 and -100, from nine labelled slices of the map."""
    labels = torch.zeros(height, width)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            labels[rows, columns] = 3 * i + j
    labels = _partition(labels[None, :, :, None], window)[..., 0]
    return (labels[:, None, :] - labels[:, :, None] != 0) * -100.0


def _partition(x: Tensor, window: int) -> Tensor:
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def eager_swin(qkv: Tensor, bias_table: Tensor, *, num_heads: int, window_size: int, shift_size: int = 0) -> Tensor:
    """The published eager path: roll, partition, bias gather, mask tensor, softmax, merge, roll; a square window that divides the map.

    A float32 table beside half precision makes the scores and the softmax float32, as it does under autocast.
    """
    batch, height, width, channels3 = qkv.shape
    head_dim, tokens = channels3 // 3 // num_heads, window_size**2
    if shift_size:
        qkv = qkv.roll((-shift_size, -shift_size), (1, 2))
    windows = _partition(qkv, window_size)
    q, k, v = windows.view(-1, tokens, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
    scores = (q * head_dim**-0.5) @ k.transpose(-2, -1)
    scores = scores + bias_table[position_index(window_size).flatten()].view(tokens, tokens, num_heads).permute(2, 0, 1)
    if shift_size:
        mask = shift_mask(height, width, window_size, shift_size).to(scores)
        scores = (scores.view(batch, -1, num_heads, tokens, tokens) + mask[None, :, None]).view(-1, num_heads, tokens, tokens)
    out = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)
    out = out.reshape(batch, height // window_size, width // window_size, window_size, window_size, channels3 // 3)
    out = out.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels3 // 3)
    return out.roll((shift_size, shift_size), (1, 2)) if shift_size else out


def random_parameters(module: nn.Module) -> nn.Module:
    """Every parameter random and large enough to matter: at initialisation biases are 0 and position tables almost so."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "logit_scale" in name:
                parameter.copy_(math.log(10) + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.5))
    return module


def torchvision_v2_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision keeps SwinV2's q and v biases in one tensor whose middle third it ignores; everybody else keeps two."""
    state = dict(state)
    q_bias, _, v_bias = state.pop("qkv.bias").chunk(3)
    return state | {"q_bias": q_bias, "v_bias": v_bias}


def timm_block(block_class: type[nn.Module], size: tuple[int, int], *, dim: int, num_heads: int, window: int, shift: tuple[int, int]) -> nn.Module:
    """A timm block, for its `_attn`: shift, pad, partition, attention, merge."""
    block = block_class(dim, size, num_heads=num_heads, window_size=window, shift_size=shift, always_partition=True)
    return random_parameters(block).double().eval()


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Euclidean distance relative to the truth's length: the same for every sample, unlike the largest deviation."""
    return float((found.double() - truth).norm() / truth.norm())


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype, f"{what}: {found.shape} {found.dtype}, not {expected.shape} {expected.dtype}"
    if expected.numel() == 0:
        return
    found, expected = found.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max()))
    error = float((found - expected).abs().max())
    assert error <= tolerance * scale, f"{what} differs by {error:.3g}, allowed {tolerance * scale:.3g}"
