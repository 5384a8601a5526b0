"""A plain ViT needs more images than a ResNet; second-generation transformers need fewer than ViT.

python -m benchmarks.claims.data_hunger                                     smallest models on digits
python -m benchmarks.claims.data_hunger --scale full --path DATA/cifar10    the recipes for CIFAR-10, on a GPU
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import accuracy, sized
from benchmarks.claims.claim import Arm, Claim, Part, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import Model, get_recipe

FRACTIONS = (0.1, 0.3, 1.0)
# by a third of it a small Swin has not learnt what its images hold, and more of them do not help
UPDATES = 810
# the models of the DRLOC recipes without DRLOC, and ViTAE
MODELS = {
    "ViT": Model(name="vit_base_patch16_224", options={"dropout": 0.1}),
    "ResNet": Model(name="resnet50"),
    "Swin": Model(name="swin_tiny_patch4_window7_224", drop_path=0.2),
    "CvT": Model(name="cvt_13"),
    "T2T": Model(name="t2t_vit_14", drop_path=0.1),
    "ViTAE": Model(name="vitae_small", drop_path=0.1),
}
SECOND_GENERATION = ("Swin", "CvT", "T2T", "ViTAE")


def named(model: str, fraction: float) -> str:
    return f"{model}, {100 * fraction:g} %"


def claim(setting: Setting) -> Claim:
    """A plain ViT needs more images than a ResNet; second-generation transformers need fewer than ViT."""
    base = get_recipe("swin_t_scratch")
    arms = [
        Arm(name=named(name, fraction), recipe=sized(replace(base, model=model), setting, fraction=fraction), measure=accuracy)
        for name, model in MODELS.items()
        for fraction in FRACTIONS
    ]
    few, many = FRACTIONS[0], FRACTIONS[-1]
    parts = [more("ResNet beats ViT on 10 %", named("ResNet", few), named("ViT", few))]
    parts += [more(f"{name} beats ViT on 10 %", named(name, few), named("ViT", few)) for name in SECOND_GENERATION]
    for name in ("ResNet", *SECOND_GENERATION):
        growth = {named(name, few): 1, named("ViT", few): -1, named(name, many): -1, named("ViT", many): 1}
        parts.append(Part(says=f"{name}'s lead over ViT is larger on 10 % than on 100 %", terms=growth))
    return Claim(
        name="data_hunger",
        title="Data hunger",
        says="From scratch, ViT needs more data than a ResNet; second-generation transformers need less than ViT",
        source="arXiv:2010.11929 (ViT), arXiv:2106.03746 (DRLOC), arXiv:2106.03348 (ViTAE)",
        arms=tuple(arms),
        parts=tuple(parts),
        lines={name: tuple(named(name, fraction) for fraction in FRACTIONS) for name in MODELS},
        places=tuple(100 * fraction for fraction in FRACTIONS),
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
