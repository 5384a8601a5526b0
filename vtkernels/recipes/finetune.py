"""From trained weights on: other data, more pixels, or a classifier alone. Other weights: --model.checkpoint, which takes a run's folder, too."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Mixup, PaddedCrop, RandAugment, RandomErasing
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SGD, AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Constant, Cosine
from vtkernels.recipes._task import Classification, CrossEntropy
from vtkernels.recipes._tuning import AttentionOnly, HeadOnly
from vtkernels.recipes.deit import distilled
from vtkernels.train import Settings

VIT_B_21K = "timm:vit_base_patch16_224.augreg_in21k"


@recipe
def finetune() -> Recipe:
    """ViT-B/16, pretrained on ImageNet-21k, on CIFAR-100 at 384 pixels; published: 92.1 %, of weights before those given."""
    return Recipe(
        model=Model(name="vit_base_patch16_384", checkpoint=VIT_B_21K),
        # 448 pixels before the crop, as in the later version of the code
        data=Data(name="cifar100", size=384, batch_size=512, normalize="half", eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=32, mode="reflect", resize=True)),
        task=Classification(),
        # velocity in bfloat16, as in the code, is left out
        optim=SGD(lr=0.03, momentum=0.9, weight_decay=0.0),
        schedule=Cosine(warmup_updates=500, prefix=True, per="update"),
        # 10,000 updates of 97 an epoch
        train=Settings(epochs=103, clip_norm=1.0),
    )


@recipe
def finetune_cifar10() -> Recipe:
    """ViT-B/16, pretrained on ImageNet-21k, on CIFAR-10 at 384 pixels; published: 99.0 %, of weights before those given."""
    base = finetune()
    return replace(base, data=replace(base.data, name="cifar10"), optim=replace(base.optim, lr=0.01))


@recipe
def finetune_imagenet() -> Recipe:
    """ViT-B/16, pretrained on ImageNet-21k, on ImageNet at 384 pixels; published: 84.5 %, of weights before those given."""
    base = finetune()
    # 20,000 updates of 2,502 an epoch
    return replace(base, data=replace(base.data, name="imagenet"), augment=Augment(), train=replace(base.train, epochs=8))


@recipe
def finetune_augreg() -> Recipe:
    """ViT-B/16, pretrained on ImageNet-21k, on CIFAR-100 at 384 pixels in 500 updates."""
    base = finetune()
    schedule = replace(base.schedule, warmup_updates=100)
    # 485 updates: five epochs of 97 come closest
    return replace(base, schedule=schedule, train=replace(base.train, epochs=5))


@recipe
def finetune_mixer() -> Recipe:
    """Mixer-B/16 of ImageNet, the run of `mixer`, on CIFAR-10 at 224 pixels; published: 96.7 %."""
    base = finetune()
    return replace(
        base,
        model=Model(name="mixer_b16_224", checkpoint="runs/mixer"),
        data=replace(base.data, name="cifar10", size=224),
        # 256 pixels before the crop
        augment=Augment(crop=PaddedCrop(padding=16, mode="reflect", resize=True)),
    )


@recipe
def linear_probe() -> Recipe:
    """A classifier on the frozen features of a ViT-B/16 that was pretrained on ImageNet-21k."""
    return Recipe(
        model=Model(name="vit_base_patch16_224", checkpoint=VIT_B_21K, trained=HeadOnly()),
        data=Data(name="cifar100", size=224, batch_size=512, normalize="half", eval_crop=1.0),
        # features of the images as they are
        augment=Augment(crop=PaddedCrop(padding=0, resize=True), flip=0.0),
        task=Classification(eval_mode=True),
        # no source tells rate and length: those of SGD elsewhere, for as long as a classifier needs
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=0.0),
        schedule=Cosine(per="update"),
        train=Settings(epochs=30),
    )


@recipe
def deit_384() -> Recipe:
    """DeiT-B at 384 pixels, from its weights at 224; published: 82.9 %, in the paper 83.1 %."""
    return Recipe(
        model=Model(name="deit_base_patch16_384", drop_path=0.1, checkpoint="timm:deit_base_patch16_224.fb_in1k"),
        # the code shrinks by 224 / 256 at any size
        data=Data(name="imagenet", size=384, batch_size=512, eval_crop=0.875),
        augment=Augment(policy=RandAugment(spec="rand-m9-mstd0.5-inc1"), repeats=3),
        mix=Mixup(mixup=0.8, cutmix=1.0, prob=1.0, switch=0.5),
        erase=RandomErasing(prob=0.25, mode="pixel", count=1),
        # dropout and stochastic depth are off while it trains
        task=Classification(loss=CrossEntropy(smoothing=0.1), eval_mode=True),
        optim=AdamW(lr=5e-6, weight_decay=1e-8),
        schedule=Constant(),
        train=Settings(epochs=30, ema_decay=0.99996),
    )


@recipe
def deit_distilled_384() -> Recipe:
    """The DeiT-B of `deit_distilled_1000` at 384 pixels, with its token and its teacher; published: 85.2 %."""
    base = deit_384()
    taught = distilled(base, "deit_base_distilled_patch16_384")
    return replace(taught, model=replace(base.model, name=taught.model.name, checkpoint="runs/deit_distilled_1000"))


@recipe
def deit_384_attention() -> Recipe:
    """DeiT-B at 384 pixels, where attention, positions and classifier alone learn."""
    base = deit_384()
    return replace(base, model=replace(base.model, trained=AttentionOnly()))
