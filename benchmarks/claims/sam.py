"""SAM flattens, ViT and Mixer more than a ResNet; it helps the more the fewer images there are, thins activations, and bears wrong labels.

python -m benchmarks.claims.sam                                      smallest models on digits
python -m benchmarks.claims.sam --scale full --path DATA/imagenet    ViT-B/16, Mixer-B/16 and ResNet-152 by their recipe, on GPUs
"""

import sys
from dataclasses import replace

import numpy as np

from benchmarks.claims.arms import accuracy, sized
from benchmarks.claims.claim import Arm, Claim, Metrics, Part, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import SAM, SGD, Model, PerSamples, Recipe, get_recipe
from vtkernels.train import Trainer

MODELS, FRACTIONS, NOISE = ("ViT", "Mixer", "ResNet"), (0.1, 1.0), 0.4
# published for the large models
RHO = {"ViT": 0.2, "Mixer": 0.6, "ResNet": 0.02}
# SAM's default, for the smallest ones, of which nothing is published
TINY_RHO = 0.05
CURVATURE_IMAGES, LANCZOS_STEPS = 128, 12
UPDATES = 810


def base(model: str) -> Recipe:
    """Without SAM."""
    vit = get_recipe("vit_b16")
    if model == "ViT":
        return vit
    if model == "Mixer":
        return replace(vit, model=Model(name="mixer_b16_224"))
    sgd = SGD(lr=0.1, momentum=0.9, weight_decay=1e-3, scaling=PerSamples(reference=256))
    schedule, settings = replace(vit.schedule, warmup_updates=5000), replace(vit.train, epochs=90, clip_norm=None)
    return replace(vit, model=Model(name="resnet152"), optim=sgd, schedule=schedule, train=settings)


def curvature(trainer: Trainer, recipe: Recipe) -> Metrics:
    """Accuracy; the decimal logarithm of the Hessian's largest eigenvalue on training images; the share of active neurons (%)."""
    from vtkernels.analysis.sharpness import sharpness
    from vtkernels.analysis.sparsity import active_share
    from vtkernels.data.datasets import Subset
    from vtkernels.recipes._build import validation_loader

    train, _ = recipe.data.datasets()
    part = Subset(train, np.random.default_rng(0).permutation(len(train))[:CURVATURE_IMAGES])
    loader = validation_loader(recipe, part, 64, trainer.device)
    found = sharpness(trainer.model, loader, eigenvalues=0, lanczos_steps=LANCZOS_STEPS, trace_samples=0, draws=0)
    shares = list(active_share(trainer.model, loader).values())
    flatness = {"log_lambda": float(np.log10(max(found.largest, 1e-12)))}
    return accuracy(trainer, recipe) | flatness | {"active": 100 * sum(shares) / len(shares), "active_first": 100 * shares[0]}


def named(model: str, fraction: float, sam: bool, noise: float = 0.0) -> str:
    return f"{model}, {100 * fraction:g} %" + (f", {100 * noise:g} % wrong labels" if noise else "") + (", SAM" if sam else "")


def claim(setting: Setting) -> Claim:
    """SAM flattens, ViT and Mixer more than a ResNet; helps more on fewer images; thins activations; bears wrong labels."""
    arms, parts = [], []
    for model in MODELS:
        for sam in (False, True):
            recipe = base(model)
            if sam:
                recipe = replace(recipe, sam=SAM(rho=TINY_RHO if setting.scale == "tiny" else RHO[model]))
            arms += [
                Arm(name=named(model, share, sam), recipe=sized(recipe, setting, fraction=share), measure=curvature if share == 1 else accuracy)
                for share in FRACTIONS
            ]
            noisy = sized(recipe, setting)
            noisy = replace(noisy, data=replace(noisy.data, noise=NOISE))
            arms.append(Arm(name=named(model, 1, sam, NOISE), recipe=noisy, measure=accuracy))
        plain, sam, few = named(model, 1, False), named(model, 1, True), FRACTIONS[0]
        parts += [
            more(f"{model}: SAM lowers the largest eigenvalue", plain, sam, "log_lambda", "orders of magnitude"),
            more(f"{model}: SAM raises accuracy on 100 %", sam, plain),
            more(f"{model}: SAM raises accuracy on 10 %", named(model, few, True), named(model, few, False)),
            Part(says=f"{model}: SAM helps more on 10 %", terms={named(model, few, True): 1, named(model, few, False): -1, sam: -1, plain: 1}),
            more(f"{model}: fewer neurons are active by SAM", plain, sam, "active"),
            more(f"{model}: SAM bears 40 % wrong labels better", named(model, 1, True, NOISE), named(model, 1, False, NOISE)),
        ]
    for model in ("ViT", "Mixer"):
        terms = {named(model, 1, False): 1, named(model, 1, True): -1, named("ResNet", 1, False): -1, named("ResNet", 1, True): 1}
        parts.append(Part(says=f"SAM flattens {model} more than ResNet", terms=terms, metric="log_lambda", unit="orders of magnitude"))
    return Claim(
        name="sam",
        title="SAM",
        says="SAM flattens, ViT and Mixer more than a ResNet; it helps more on fewer images, thins activations, and bears wrong labels",
        source="arXiv:2106.01548, tables 1 to 4; arXiv:2010.01412, table 4",
        arms=tuple(arms),
        parts=tuple(parts),
        limits="Eighteen epochs of digits are too few to learn wrong labels by heart, which SAM is to prevent: training losses stay near their entropy, 1.44.",
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
