"""The other ways to get the pairs of dense relative localisation from a channels-last map.

A peer is a function (features [B, H, W, C], pairs of an image) -> (pairs [B, m, 2C], targets [B, m, 2], first and second positions
[B, m, 2] each). It draws the positions itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Peer = Callable[[Tensor, int], tuple[Tensor, Tensor, tuple[Tensor, Tensor]]]


def published(features: Tensor, pairs: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """VTs-Drloc by its algorithm: positions from the CPU's generator, the whole map permuted to [C, B * H * W] for each point.

    Its index, row * H + column, is right on square maps only; its targets count positions.
    """
    batch, height, width, channels = features.shape
    first, second = (torch.randint(height, (batch, pairs, 2)) for _ in range(2))
    targets = (first - second).float().to(features.device).abs()
    image = features.permute(0, 3, 1, 2).flatten(2)
    start = torch.arange(batch)[:, None] * (height * width)

    def pick(points: Tensor) -> Tensor:
        columns = image.permute(1, 0, 2).reshape(channels, -1)
        index = (start + points[..., 0] * height + points[..., 1]).flatten().to(features.device)
        return columns[:, index].view(channels, batch, pairs).permute(1, 2, 0).contiguous()

    return torch.cat([pick(first), pick(second)], 2), targets, (first, second)


def _drawn(features: Tensor, pairs: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Rows of the flattened map [B * m * 2], each pair's beside each other; targets; positions."""
    batch, height, width, _ = features.shape
    row, column = (torch.randint(size, (batch, pairs, 2), device=features.device) for size in (height, width))
    start = torch.arange(batch, device=features.device)[:, None, None] * (height * width)
    targets = torch.stack([(axis[..., 0] - axis[..., 1]).abs() / size for axis, size in ((row, height), (column, width))], -1)
    first, second = (torch.stack([row[..., i], column[..., i]], -1) for i in range(2))
    return (start + row * width + column).flatten(), targets, (first, second)


def gather(features: Tensor, pairs: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """A careful version: one index_select of whole rows, so ordered that nothing is concatenated."""
    batch, _, _, channels = features.shape
    index, targets, positions = _drawn(features, pairs)
    return features.flatten(0, 2).index_select(0, index).view(batch, pairs, 2 * channels), targets, positions


def embedding(features: Tensor, pairs: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The same by an embedding's gather, whose backward is another kernel."""
    batch, _, _, channels = features.shape
    index, targets, positions = _drawn(features, pairs)
    return F.embedding(index, features.flatten(0, 2)).view(batch, pairs, 2 * channels), targets, positions


def _compiled(peer: Peer) -> Peer:
    # compiled at the first call, which is the gate's
    return torch.compile(peer, dynamic=False)


PEERS: dict[str, Callable[[], Peer]] = {
    "published": lambda: published,
    "gather": lambda: gather,
    "embedding": lambda: embedding,
    "published_inductor": lambda: _compiled(published),
    "gather_inductor": lambda: _compiled(gather),
    "embedding_inductor": lambda: _compiled(embedding),
}
