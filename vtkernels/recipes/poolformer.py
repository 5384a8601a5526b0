"""PoolFormer (arXiv:2111.11418) from scratch on ImageNet, with the values of its code."""

from dataclasses import replace

from vtkernels.recipes._optim import AdamW, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes.swin import swin_t
from vtkernels.train import Settings


def of_size(name: str, drop_path: float, eval_crop: float) -> Recipe:
    base = swin_t()
    return replace(
        base,
        model=Model(name=name, drop_path=drop_path),
        # crops for evaluation are those of the authors' models, the recipes have none
        data=replace(base.data, eval_crop=eval_crop),
        optim=AdamW(lr=1e-3, weight_decay=0.05, scaling=PerSamples(reference=1024)),
        schedule=Cosine(warmup=5, warmup_lr=1e-6, final_lr=1e-5, per="epoch"),
        # its moving average of 0.9998 is an option
        train=Settings(epochs=300),
    )


@recipe
def poolformer() -> Recipe:
    """PoolFormer-S12 on ImageNet; published: 77.2 %."""
    return of_size("poolformer_s12", drop_path=0.1, eval_crop=0.9)


@recipe
def poolformer_s24() -> Recipe:
    """PoolFormer-S24 on ImageNet; published: 80.3 %."""
    return of_size("poolformer_s24", drop_path=0.1, eval_crop=0.9)


@recipe
def poolformer_s36() -> Recipe:
    """PoolFormer-S36 on ImageNet; published: 81.4 %."""
    return of_size("poolformer_s36", drop_path=0.2, eval_crop=0.9)


@recipe
def poolformer_m36() -> Recipe:
    """PoolFormer-M36 on ImageNet; published: 82.1 %."""
    return of_size("poolformer_m36", drop_path=0.3, eval_crop=0.95)


@recipe
def poolformer_m48() -> Recipe:
    """PoolFormer-M48 on ImageNet; published: 82.5 %."""
    return of_size("poolformer_m48", drop_path=0.4, eval_crop=0.95)
