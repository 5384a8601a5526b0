"""Swin transformers that saw more than ImageNet's classes or labels before: ImageNet-21k (arXiv:2103.14030) or SimMIM (arXiv:2111.09886)."""

from dataclasses import replace

from vtkernels.recipes._optim import AdamW, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes.swin import swin_t


def pretrained(name: str, drop_path: float) -> Recipe:
    """On ImageNet-21k."""
    base = swin_t()
    return replace(
        base,
        model=Model(name=name, drop_path=drop_path),
        data=replace(base.data, name="imagenet-21k", batch_size=4096),
        optim=replace(base.optim, lr=1.25e-4),
        # the table has neither end: as many times lower as the rate is
        schedule=replace(base.schedule, warmup=5, warmup_lr=1.25e-7, final_lr=1.25e-6),
        train=replace(base.train, epochs=90),
    )


def tuned(name: str, drop_path: float, weights: str) -> Recipe:
    """On ImageNet, for fewer epochs and at lower rates."""
    base = swin_t()
    return replace(
        base,
        model=Model(name=name, drop_path=drop_path, checkpoint=weights),
        optim=AdamW(lr=2e-5, weight_decay=1e-8, scaling=PerSamples(reference=512, ends=True)),
        schedule=Cosine(warmup=5, warmup_lr=2e-8, final_lr=2e-7, prefix=True, per="update"),
        train=replace(base.train, epochs=30),
    )


def at_384(name: str, drop_path: float, weights: str) -> Recipe:
    """The relative positions of smaller windows are carried over."""
    base = tuned(name, drop_path, weights)
    # whole images, whatever their shape
    return replace(base, data=replace(base.data, size=384, eval_crop=1.0, squash=True))


@recipe
def swin_t_21k() -> Recipe:
    """Swin-T on ImageNet-21k, before `swin_t_21k_1k`."""
    return pretrained("swin_tiny_patch4_window7_224", drop_path=0.1)


@recipe
def swin_s_21k() -> Recipe:
    """Swin-S on ImageNet-21k, before `swin_s_21k_1k`."""
    return pretrained("swin_small_patch4_window7_224", drop_path=0.2)


@recipe
def swin_b_21k() -> Recipe:
    """Swin-B on ImageNet-21k, before `swin_b_21k_1k` and `swin_b_21k_1k_384`."""
    return pretrained("swin_base_patch4_window7_224", drop_path=0.2)


@recipe
def swin_l_21k() -> Recipe:
    """Swin-L on ImageNet-21k, before `swin_l_21k_1k` and `swin_l_21k_1k_384`."""
    return pretrained("swin_large_patch4_window7_224", drop_path=0.2)


@recipe
def swin_t_21k_1k() -> Recipe:
    """The Swin-T of `swin_t_21k` on ImageNet; published: 80.9 %."""
    return tuned("swin_tiny_patch4_window7_224", 0.1, "timm:swin_tiny_patch4_window7_224.ms_in22k")


@recipe
def swin_s_21k_1k() -> Recipe:
    """The Swin-S of `swin_s_21k` on ImageNet; published: 83.2 %."""
    return tuned("swin_small_patch4_window7_224", 0.2, "timm:swin_small_patch4_window7_224.ms_in22k")


@recipe
def swin_b_21k_1k() -> Recipe:
    """The Swin-B of `swin_b_21k` on ImageNet; published: 85.2 %."""
    return tuned("swin_base_patch4_window7_224", 0.2, "timm:swin_base_patch4_window7_224.ms_in22k")


@recipe
def swin_l_21k_1k() -> Recipe:
    """The Swin-L of `swin_l_21k` on ImageNet; published: 86.3 %."""
    return tuned("swin_large_patch4_window7_224", 0.2, "timm:swin_large_patch4_window7_224.ms_in22k")


@recipe
def swin_b_21k_1k_384() -> Recipe:
    """The Swin-B of `swin_b_21k` on ImageNet at 384 pixels; published: 86.4 %."""
    return at_384("swin_base_patch4_window12_384", 0.2, "timm:swin_base_patch4_window7_224.ms_in22k")


@recipe
def swin_l_21k_1k_384() -> Recipe:
    """The Swin-L of `swin_l_21k` on ImageNet at 384 pixels; published: 87.3 %."""
    return at_384("swin_large_patch4_window12_384", 0.2, "timm:swin_large_patch4_window7_224.ms_in22k")


@recipe
def swin_b_384() -> Recipe:
    """The Swin-B of `swin_b` at 384 pixels; published: 84.5 %."""
    # its stochastic depth is not told: that of its training
    return at_384("swin_base_patch4_window12_384", 0.5, "timm:swin_base_patch4_window7_224.ms_in1k")


@recipe
def swin_b_simmim() -> Recipe:
    """Swin-B on ImageNet from weights that SimMIM trained without labels: --model.checkpoint FILE of its code."""
    base = swin_t()
    return replace(
        base,
        model=Model(name="swin_base_patch4_window7_224", drop_path=0.1, checkpoint="simmim_pretrain__swin_base__img192_window6__800ep.pth"),
        # the table tells rate, decay of the layers, depth and epochs; all else is Swin's
        optim=replace(base.optim, lr=1.25e-3, layer_decay=0.8, layers="simmim"),
        train=replace(base.train, epochs=100),
    )
