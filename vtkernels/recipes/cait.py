"""CaiT (arXiv:2103.17239) by DeiT's recipe for 400 epochs. Stochastic depth is the same in all blocks of the trunk."""

from dataclasses import replace

from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes.deit import deit


def of_size(name: str, drop_path: float) -> Recipe:
    base = deit()
    return replace(
        base,
        model=Model(name=name, drop_path=drop_path),
        data=replace(base.data, eval_crop=1.0),
        train=replace(base.train, epochs=400),
    )


@recipe
def cait() -> Recipe:
    """CaiT-S24 on ImageNet; published: 82.7 %."""
    return of_size("cait_s24_224", drop_path=0.1)


@recipe
def cait_xxs24() -> Recipe:
    """CaiT-XXS24 on ImageNet; published: 77.6 %."""
    return of_size("cait_xxs24_224", drop_path=0.05)


@recipe
def cait_xxs36() -> Recipe:
    """CaiT-XXS36 on ImageNet; published: 79.1 %."""
    return of_size("cait_xxs36_224", drop_path=0.1)


@recipe
def cait_xs24() -> Recipe:
    """CaiT-XS24 on ImageNet; published: 81.8 %."""
    return of_size("cait_xs24_224", drop_path=0.05)


@recipe
def cait_xs36() -> Recipe:
    """CaiT-XS36 on ImageNet; published: 82.6 %."""
    return of_size("cait_xs36_224", drop_path=0.1)


@recipe
def cait_s36() -> Recipe:
    """CaiT-S36 on ImageNet; published: 83.3 %."""
    return of_size("cait_s36_224", drop_path=0.2)


@recipe
def cait_s48() -> Recipe:
    """CaiT-S48 on ImageNet; published: 83.5 %."""
    return of_size("cait_s48_224", drop_path=0.3)


@recipe
def cait_m24() -> Recipe:
    """CaiT-M24 on ImageNet; published: 83.4 %."""
    return of_size("cait_m24_224", drop_path=0.2)


@recipe
def cait_m36() -> Recipe:
    """CaiT-M36 on ImageNet; published: 83.8 %."""
    return of_size("cait_m36_224", drop_path=0.3)


@recipe
def cait_m48() -> Recipe:
    """CaiT-M48 on ImageNet; published at 448 pixels with a teacher: 86.5 %. Evaluate it in float32."""
    return of_size("cait_m48_224", drop_path=0.4)
