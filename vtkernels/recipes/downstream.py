"""Segmentation and detection on trunks trained on classes: `--model.checkpoint FILE` gives one, `--task.frozen true` leaves it as it is."""

from dataclasses import replace

from vtkernels.recipes._augment import Scene
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine, Linear, Steps
from vtkernels.recipes._task import Detection, Segmentation
from vtkernels.train import Settings


@recipe
def shapes_segmentation() -> Recipe:
    """A small Swin with UPerNet's head on drawn shapes, in minutes on one core."""
    return Recipe(
        model=Model(name="swin_nano_patch4_window4_32"),
        data=Data(name="shapes", size=64, batch_size=16, normalize="set", options={"task": "segmentation", "objects": 3}, workers=0),
        augment=Scene(shortest=(56, 80)),
        task=Segmentation(head="upernet", channels=32),
        optim=AdamW(lr=2e-3, weight_decay=0.01),
        schedule=Cosine(warmup=1, final_lr=1e-5),
        train=Settings(epochs=15, monitor="miou"),
    )


@recipe
def shapes_detection() -> Recipe:
    """A small Swin with FCOS's head on drawn shapes."""
    base = shapes_segmentation()
    return replace(
        base,
        data=replace(base.data, options={"task": "detection", "objects": 3}),
        task=Detection(channels=64, depth=2, finest=4, extra=1),
        train=replace(base.train, monitor="map", clip_norm=1.0),
    )


@recipe
def ade20k_upernet() -> Recipe:
    """Swin-T with UPerNet on ADE20K, 160 thousand steps; published: 44.5 mIoU at the images' own sizes."""
    return Recipe(
        # the sources give 0.2 and 0.3
        model=Model(name="swin_tiny_patch4_window7_224", drop_path=0.2),
        data=Data(name="ade20k", size=512, batch_size=16, normalize="imagenet"),
        # half to twice a shorter side of 512
        augment=Scene(shortest=(256, 1024), longest=4096, jitter=0.4),
        task=Segmentation(head="upernet", channels=512, auxiliary=0.4),
        optim=AdamW(lr=6e-5, weight_decay=0.01),
        schedule=Linear(warmup_updates=1500, warmup_lr=6e-11, final_lr=0.0),
        # 127 times 1263 updates
        train=Settings(epochs=127, monitor="miou"),
    )


@recipe
def ade20k_upernet_s() -> Recipe:
    """Swin-S with UPerNet on ADE20K; published: 47.6 mIoU at the images' own sizes."""
    return replace(ade20k_upernet(), model=Model(name="swin_small_patch4_window7_224", drop_path=0.3))


@recipe
def ade20k_upernet_b() -> Recipe:
    """Swin-B with UPerNet on ADE20K; published: 48.1 mIoU at the images' own sizes."""
    return replace(ade20k_upernet(), model=Model(name="swin_base_patch4_window7_224", drop_path=0.3))


@recipe
def coco_detection() -> Recipe:
    """Swin-T with FCOS's head on COCO, the published schedule of 36 epochs for Mask R-CNN, which is another detector: no published figure."""
    return Recipe(
        model=Model(name="swin_tiny_patch4_window7_224", drop_path=0.2),
        # images of at most 1333 pixels, continued to a multiple of 32
        data=Data(name="coco", size=1344, batch_size=16, normalize="imagenet"),
        augment=Scene(shortest=(480, 800), longest=1333, valid_shortest=800),
        task=Detection(channels=256, depth=4, finest=8, extra=2),
        optim=AdamW(lr=1e-4, weight_decay=0.05),
        schedule=Steps(warmup_updates=500, warmup_lr=1e-7, at=(27 / 36, 33 / 36), factor=0.1),
        train=Settings(epochs=36, monitor="map"),
    )
