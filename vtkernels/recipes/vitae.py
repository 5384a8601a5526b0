"""ViTAE (arXiv:2106.03348) and ViTAEv2 (arXiv:2202.10108) from scratch on ImageNet, with the values of their code."""

from dataclasses import replace

from vtkernels.recipes._optim import AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes.t2t import t2t
from vtkernels.train import Settings


@recipe
def vitae() -> Recipe:
    """ViTAE-T on ImageNet; published: 75.3 %."""
    return replace(
        # the code grew out of that one
        t2t(),
        model=Model(name="vitae_tiny", drop_path=0.1),
        optim=AdamW(lr=1e-3, weight_decay=0.03),
        schedule=Cosine(warmup=10, warmup_lr=1e-6, final_lr=1e-5, per="epoch"),
        train=Settings(epochs=300, ema_decay=0.99996),
    )


@recipe
def vitae_6m() -> Recipe:
    """ViTAE-6M on ImageNet; published: 77.9 %."""
    # the table has the tiny one's values only
    return replace(vitae(), model=Model(name="vitae_6m", drop_path=0.1))


@recipe
def vitae_small() -> Recipe:
    """ViTAE-S on ImageNet; published: 82.0 %."""
    # the table has the tiny one's values only
    return replace(vitae(), model=Model(name="vitae_small", drop_path=0.1))


def second(name: str, drop_path: float, weight_decay: float = 0.05) -> Recipe:
    base = vitae()
    return replace(
        base,
        model=Model(name=name, drop_path=drop_path),
        data=replace(base.data, batch_size=1024),
        optim=AdamW(lr=5e-4, weight_decay=weight_decay),
    )


@recipe
def vitaev2() -> Recipe:
    """ViTAEv2-S on ImageNet; published: 82.6 %."""
    return second("vitaev2_small", drop_path=0.1)


@recipe
def vitaev2_48m() -> Recipe:
    """ViTAEv2-48M on ImageNet; published: 83.8 %."""
    return second("vitaev2_48m", drop_path=0.25, weight_decay=0.055)


@recipe
def vitaev2_base() -> Recipe:
    """ViTAEv2-B on ImageNet; published: 84.6 %."""
    base = second("vitaev2_base", drop_path=0.4, weight_decay=0.065)
    return replace(base, model=replace(base.model, options={"dropout": 0.1}), train=replace(base.train, clip_norm=5.0))
