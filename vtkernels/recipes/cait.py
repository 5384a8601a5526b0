"""CaiT (arXiv:2103.17239) by DeiT's recipe for 400 epochs. Stochastic depth is the same in all blocks of the trunk."""

from dataclasses import replace

from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes.deit import deit, distilled

# size -> stochastic depth
SIZES = {"xxs24": 0.05, "xxs36": 0.1, "xs24": 0.05, "xs36": 0.1, "s24": 0.1, "s36": 0.2, "s48": 0.3, "m24": 0.2, "m36": 0.3, "m48": 0.4}


def of_size(size: str) -> Recipe:
    base = deit()
    return replace(
        base,
        model=Model(name=f"cait_{size}_224", drop_path=SIZES[size]),
        data=replace(base.data, eval_crop=1.0),
        train=replace(base.train, epochs=400),
    )


@recipe
def cait() -> Recipe:
    """CaiT-S24 on ImageNet; published: 82.7 %."""
    return of_size("s24")


@recipe
def cait_xxs24() -> Recipe:
    """CaiT-XXS24 on ImageNet; published: 77.6 %."""
    return of_size("xxs24")


@recipe
def cait_xxs36() -> Recipe:
    """CaiT-XXS36 on ImageNet; published: 79.1 %."""
    return of_size("xxs36")


@recipe
def cait_xs24() -> Recipe:
    """CaiT-XS24 on ImageNet; published: 81.8 %."""
    return of_size("xs24")


@recipe
def cait_xs36() -> Recipe:
    """CaiT-XS36 on ImageNet; published: 82.6 %."""
    return of_size("xs36")


@recipe
def cait_s36() -> Recipe:
    """CaiT-S36 on ImageNet; published: 83.3 %."""
    return of_size("s36")


@recipe
def cait_s48() -> Recipe:
    """CaiT-S48 on ImageNet; published: 83.5 %."""
    return of_size("s48")


@recipe
def cait_m24() -> Recipe:
    """CaiT-M24 on ImageNet; published: 83.4 %."""
    return of_size("m24")


@recipe
def cait_m36() -> Recipe:
    """CaiT-M36 on ImageNet; published: 83.8 %."""
    return of_size("m36")


@recipe
def cait_m48() -> Recipe:
    """CaiT-M48 on ImageNet; published at 448 pixels with a teacher: 86.5 %. Evaluate it in float32."""
    return of_size("m48")


@recipe(choices=SIZES)
def cait_distilled(size: str = "s24") -> Recipe:
    """CaiT on ImageNet with a teacher, whose classes its one head learns beside the labels; published: S24 83.5 %, XXS24 78.4 %, M36 85.1 %."""
    base = of_size(size)
    return replace(distilled(base, base.model.name), model=base.model)
