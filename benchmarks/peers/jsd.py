"""The other ways to compute AugMix's loss and its gradient, from logits that are given.

A peer is a function of the leaf of logits [V * B, K] and the classes of the clean view [B]; it returns the loss.
"""

from collections.abc import Callable

import torch
from peers.window_attention import Unavailable
from torch import Tensor
from torch.nn import functional as F

VIEWS, WEIGHT = 3, 12.0
Loss = Callable[[Tensor, Tensor], Tensor]


def augmix(logits: Tensor, target: Tensor) -> Tensor:
    """google-research/augmix, step for step: three softmaxes, their clamped mean's logarithm, three divergences."""
    clean, first, second = torch.split(logits, len(target))
    loss = F.cross_entropy(clean, target)
    p_clean, p_first, p_second = (F.softmax(one, dim=1) for one in (clean, first, second))
    log_mixture = torch.clamp((p_clean + p_first + p_second) / 3.0, 1e-7, 1).log()
    divergences = [F.kl_div(log_mixture, p, reduction="batchmean") for p in (p_clean, p_first, p_second)]
    return loss + WEIGHT * (divergences[0] + divergences[1] + divergences[2]) / 3.0


def timm(logits: Tensor, target: Tensor) -> Tensor:
    """timm's JsdCrossEntropy(3, 12, smoothing=0), step for step: what it stacks is a copy of all probabilities."""
    splits = torch.split(logits, logits.shape[0] // VIEWS)
    loss = F.cross_entropy(splits[0], target[: splits[0].shape[0]])
    probabilities = [F.softmax(split, dim=1) for split in splits]
    log_mixture = torch.clamp(torch.stack(probabilities).mean(axis=0), 1e-7, 1).log()
    return loss + WEIGHT * sum(F.kl_div(log_mixture, p, reduction="batchmean") for p in probabilities) / len(probabilities)


def stable(logits: Tensor, target: Tensor) -> Tensor:
    """What a careful author writes: one log-softmax of all views, its exponential, one sum."""
    log_p = logits.unflatten(0, (VIEWS, -1)).log_softmax(-1)
    p = log_p.exp()
    log_mixture = p.mean(0).clamp(1e-7, 1).log()
    return F.nll_loss(log_p[0], target) + WEIGHT * (p * (log_p - log_mixture)).sum() / logits.shape[0]


def compiled(loss: Loss) -> Callable[[], Loss]:
    def make() -> Loss:
        if not torch._dynamo.is_dynamo_supported():
            raise Unavailable("torch.compile does not support this Python or platform")
        # the generated C++ fixes the thread count: named, it is part of the compiler cache's key
        options = {"cpp.threads": torch.get_num_threads()} if not torch.cuda.is_available() else None
        return torch.compile(loss, fullgraph=True, dynamic=False, options=options)

    return make


# made anew for each problem, so that each is compiled for its shape
PEERS: dict[str, Callable[[], Loss]] = {
    "augmix": lambda: augmix,
    "timm": lambda: timm,
    "stable": lambda: stable,
    "augmix_inductor": compiled(augmix),
    "timm_inductor": compiled(timm),
    "stable_inductor": compiled(stable),
}
PUBLISHED = "augmix"
