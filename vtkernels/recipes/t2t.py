"""T2T-ViT (arXiv:2101.11986) from scratch on ImageNet, with the values of its code."""

from dataclasses import replace

from vtkernels.recipes._augment import ResizedCrop
from vtkernels.recipes._optim import AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes.swin import swin_t
from vtkernels.train import Settings


def of_size(name: str, lr: float, weight_decay: float) -> Recipe:
    base = swin_t()
    return replace(
        base,
        model=Model(name=name, drop_path=0.1),
        # 0.9 is that of the authors' models, the recipes have none
        data=replace(base.data, batch_size=512, eval_crop=0.9),
        augment=replace(base.augment, crop=ResizedCrop(filter="random")),
        # the rate does not follow the batch
        optim=AdamW(lr=lr, weight_decay=weight_decay),
        # unlike those of DeiT its 10 epochs of cooldown are run
        schedule=Cosine(warmup=10, warmup_lr=1e-6, final_lr=1e-5, span=300, per="epoch"),
        train=Settings(epochs=310, ema_decay=0.99996),
    )


@recipe
def t2t() -> Recipe:
    """T2T-ViT-14 on ImageNet; published: 81.5 %."""
    return of_size("t2t_vit_14", lr=5e-4, weight_decay=0.05)


@recipe
def t2t_19() -> Recipe:
    """T2T-ViT-19 on ImageNet; published: 81.9 %."""
    return of_size("t2t_vit_19", lr=5e-4, weight_decay=0.065)


@recipe
def t2t_24() -> Recipe:
    """T2T-ViT-24 on ImageNet; published: 82.3 %."""
    return of_size("t2t_vit_24", lr=5e-4, weight_decay=0.065)


@recipe
def t2t_transformer_14() -> Recipe:
    """T2T-ViT-14 with transformers between its splits, on ImageNet; published: 81.7 %."""
    return of_size("t2t_vit_t_14", lr=5e-4, weight_decay=0.05)


@recipe
def t2t_7() -> Recipe:
    """T2T-ViT-7 on ImageNet; published: 71.7 %."""
    return of_size("t2t_vit_7", lr=1e-3, weight_decay=0.03)


@recipe
def t2t_10() -> Recipe:
    """T2T-ViT-10 on ImageNet; published: 75.2 %."""
    return of_size("t2t_vit_10", lr=1e-3, weight_decay=0.03)


@recipe
def t2t_12() -> Recipe:
    """T2T-ViT-12 on ImageNet; published: 76.5 %."""
    return of_size("t2t_vit_12", lr=1e-3, weight_decay=0.03)
