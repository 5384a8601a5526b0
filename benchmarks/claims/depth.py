"""A class token that enters late and LayerScale let deeper transformers train.

python -m benchmarks.claims.depth                                      smallest models on digits
python -m benchmarks.claims.depth --scale full --path DATA/imagenet    widths of ViT-S, 12 and 36 blocks, on GPUs
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import accuracy, sized
from benchmarks.claims.claim import Arm, Claim, Part, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import Model, Recipe, get_recipe

CAIT, WITHOUT, VIT = "CaiT", "CaiT without LayerScale", "ViT"
DEPTHS = {"tiny": (4, 16), "full": (12, 36)}
# a deep model learns slowly at first
UPDATES = 810


def layer_scale(depth: int) -> float:
    """The paper's rule."""
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


def of_depth(name: str, depth: int) -> Model:
    if name == VIT:
        # as small as CaiT's: the arms shall differ in what the claim is about
        return Model(name="vit_small_patch16_224", drop_path=0.1, options={"depth": depth, "init": "timm"})
    # branches that are scaled by one are not scaled
    scale = layer_scale(depth) if name == CAIT else 1.0
    return Model(name="cait_s24_224", drop_path=0.1, options={"depth": depth, "layer_scale": scale})


def claim(setting: Setting) -> Claim:
    """A class token that enters late and LayerScale let deeper transformers train."""
    deit = get_recipe("deit_small")
    depths = DEPTHS[setting.scale]

    def recipe(name: str, depth: int) -> Recipe:
        made = sized(replace(deit, model=of_depth(name, depth)), setting)
        return replace(made, model=replace(made.model, options={**made.model.options, "depth": depth}))

    shallow, deep = ({name: f"{name}, {depth} blocks" for name in (CAIT, WITHOUT, VIT)} for depth in depths)
    gain = {deep[CAIT]: 1, shallow[CAIT]: -1, deep[VIT]: -1, shallow[VIT]: 1}
    return Claim(
        name="depth",
        title="Depth",
        says="A class token that enters late and LayerScale let deeper transformers train",
        source="arXiv:2103.17239, tables 1 to 3",
        arms=tuple(Arm(name=f"{name}, {depth} blocks", recipe=recipe(name, depth), measure=accuracy) for name in (CAIT, WITHOUT, VIT) for depth in depths),
        parts=(
            more("a deeper CaiT is better", deep[CAIT], shallow[CAIT]),
            more("deep: LayerScale helps", deep[CAIT], deep[WITHOUT]),
            more("deep: CaiT beats ViT", deep[CAIT], deep[VIT]),
            Part(says="depth helps CaiT more than ViT", terms=gain),
        ),
        limits="All begin with small weights, by which no arm learns all it could in eighteen epochs; by Glorot's larger ones ViT reaches 99 % at both depths.",
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
