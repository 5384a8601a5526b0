"""Recipes against the published tables: resolved values field by field, learning rates at the turns, and what decays."""

import dataclasses

import pytest

from vtkernels.recipes import Recipe, get_recipe
from vtkernels.recipes._plan import task_without_memory

IMAGENET = 1_281_167
SWIN_AUGMENTATION = {
    "augment.policy.spec": "rand-m9-mstd0.5-inc1",
    "augment.crop.scale": (0.08, 1.0),
    "augment.crop.filter": "bicubic",
    "augment.flip": 0.5,
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "mix.prob": 1.0,
    "mix.switch": 0.5,
    "erase.prob": 0.25,
    "erase.mode": "pixel",
    "erase.count": 1,
    "data.size": 224,
    "data.eval_crop": 0.875,
    "data.normalize": "imagenet",
}
SWIN = SWIN_AUGMENTATION | {
    "model.name": "swin_tiny_patch4_window7_224",
    "model.drop_path": 0.2,
    "augment.repeats": 1,
    "task.loss.smoothing": 0.1,
    "optim": "AdamW",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.05,
    "optim.betas": (0.9, 0.999),
    "optim.eps": 1e-8,
    "schedule": "Cosine",
    "schedule.warmup": 20,
    "schedule.warmup_lr": 1e-6,
    "schedule.final_lr": 1e-5,
    "schedule.prefix": True,
    "schedule.per": "update",
    "data.batch_size": 1024,
    "train.epochs": 300,
    "train.clip_norm": 5.0,
    "train.ema_decay": None,
    "sam": None,
}
DEIT = SWIN | {
    "model.name": "deit_base_patch16_224",
    "model.drop_path": 0.1,
    "augment.repeats": 3,
    "schedule.warmup": 5,
    "schedule.prefix": False,
    "schedule.per": "epoch",
    "train.clip_norm": None,
    "train.ema_decay": 0.99996,
}
VIT = {
    "model.name": "vit_base_patch16_224",
    "data.size": 224,
    "data.batch_size": 4096,
    "augment.policy": None,
    "augment.flip": 0.5,
    "mix": None,
    "erase": None,
    "task.loss.smoothing": 0.0,
    "optim": "AdamW",
    "optim.lr": 3e-3,
    "optim.weight_decay": 0.3,
    "schedule": "Cosine",
    "schedule.warmup_updates": 10_000,
    "schedule.final_lr": 0.0,
    "train.epochs": 300,
    "train.clip_norm": 1.0,
    "sam": "SAM",
    "sam.adaptive": False,
}
SMALL_SWIN = {
    "model.name": "swin_small_data_patch2_window4_32",
    "model.drop_path": 0.1,
    "data.size": 32,
    "data.batch_size": 128,
    "data.normalize": "set",
    "augment.crop.padding": 4,
    "augment.policy.policy": "cifar",
    "mix.prob": 0.5,
    "mix.switch": 0.5,
    "mix.mixup": 1.0,
    "mix.cutmix": 1.0,
    "mix.partner": "permutation",
    "erase.prob": 0.25,
    "erase.area": (0.02, 0.4),
    "erase.aspect": 0.3,
    "erase.mode": "const",
    "task.loss.smoothing": 0.1,
    "optim": "AdamW",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.05,
    "optim.decayed": "all",
    "schedule.final_lr": 1e-6,
    # 100 epochs, of which each visits the set three times
    "schedule.warmup": 10 * 3,
    "train.epochs": 100 * 3,
}
AUGMIX = {
    "model.name": "wrn_40_2",
    "data.size": 32,
    "data.batch_size": 128,
    "data.normalize": "half",
    "augment.crop.padding": 4,
    "augment.policy.severity": 3.0,
    "augment.policy.width": 3,
    "augment.policy.depth": -1,
    "augment.policy.alpha": 1.0,
    "augment.policy.views": 3,
    "task.loss.weight": 12.0,
    "task.loss.smoothing": 0.0,
    "optim": "SGD",
    "optim.lr": 0.1,
    "optim.momentum": 0.9,
    "optim.nesterov": True,
    "optim.weight_decay": 5e-4,
    "schedule.warmup": 0,
    "schedule.final_lr": 1e-6,
    "schedule.per": "update",
    "train.epochs": 100,
    "mix": None,
    "erase": None,
}
DRLOC = {name: value for name, value in SWIN.items() if not name.startswith("task")} | {
    "data.name": "cifar10",
    "task": "Drloc",
    "task.inner.loss.smoothing": 0.1,
    "task.weight": 0.5,
    "task.pairs": 64,
    "task.mode": "l1",
    "task.target": "abs",
    "schedule.prefix": False,
    "schedule.span": 300,
    "train.epochs": 101,
}
DISTILLED = {name: value for name, value in DEIT.items() if not name.startswith("task")} | {
    "model.name": "deit_base_distilled_patch16_224",
    "task": "Distillation",
    "task.inner.loss.smoothing": 0.1,
    "task.teacher": "timm:regnety_160.deit_in1k",
    "task.form": "hard",
    "task.alpha": 0.5,
    "task.temperature": 1.0,
}
KD = {
    "model.name": "resnet18",
    "data.size": 224,
    "data.batch_size": 256,
    "mix": None,
    "erase": None,
    "task": "Distillation",
    "task.form": "soft",
    "task.alpha": 0.9,
    "task.temperature": 4.0,
    "task.mean": "samples",
    "optim": "SGD",
    "optim.lr": 0.1,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "schedule": "Steps",
    "train.epochs": 90,
}
NOISY_STUDENT = {
    "model.name": "efficientnet_b7",
    "model.drop_path": 0.2,
    "model.options": {"dropout": 0.5},
    "data.size": 600,
    "data.batch_size": 4096,
    "unlabelled": "PseudoLabelled",
    "unlabelled.ratio": 3,
    "unlabelled.form": "soft",
    "unlabelled.confidence": 0.3,
    "unlabelled.per_class": 130_000,
    "augment.policy.spec": "rand-m27-n2-p1-mmax30",
    "task": "NoisyStudent",
    "task.smoothing": 0.1,
    "task.temperature": 1.0,
    "optim": "RMSprop",
    "optim.lr": 0.256,
    "optim.weight_decay": 1e-5,
    "schedule": "Decay",
    "schedule.warmup": 5,
    "schedule.every": 2.4,
    "schedule.factor": 0.97,
    "train.epochs": 350,
    "train.ema_decay": 0.9999,
}


def noisy_student(name: str, size: int, magnitude: int, twice: bool = True) -> dict:
    stretched = {"train.epochs": 700, "schedule.every": 4.8} if twice else {}
    spec = f"rand-m{magnitude}-n2-p1-mmax30"
    return NOISY_STUDENT | {"model.name": name, "data.size": size, "augment.policy.spec": spec} | stretched


TABLE = {
    "deit": DEIT,
    "deit_distilled": DISTILLED,
    "deit_small_distilled": DISTILLED | {"model.name": "deit_small_distilled_patch16_224"},
    "deit_tiny_distilled": DISTILLED | {"model.name": "deit_tiny_distilled_patch16_224"},
    "deit_distilled_no_token": DISTILLED | {"model.name": "deit_base_patch16_224"},
    "deit_distilled_soft": DISTILLED | {"model.name": "deit_base_patch16_224", "task.form": "soft", "task.alpha": 0.1, "task.temperature": 3.0},
    "kd": KD,
    "kd_hard": KD | {"task.form": "hard", "task.alpha": 0.5, "task.temperature": 1.0},
    "kd_cifar": KD
    | {"model.name": "resnet18_cifar", "data.size": 32, "data.batch_size": 128, "optim.weight_decay": 5e-4, "train.epochs": 200, "task.teacher": None},
    "noisy_student": NOISY_STUDENT,
    "noisy_student_b0": noisy_student("efficientnet_b0", 224, 6) | {"unlabelled.ratio": 1},
    "noisy_student_b1": noisy_student("efficientnet_b1", 240, 6),
    "noisy_student_b2": noisy_student("efficientnet_b2", 260, 6),
    "noisy_student_b3": noisy_student("efficientnet_b3", 300, 12),
    "noisy_student_b4": noisy_student("efficientnet_b4", 380, 15),
    "noisy_student_b5": noisy_student("efficientnet_b5", 456, 18, twice=False),
    "noisy_student_b6": noisy_student("efficientnet_b6", 528, 24, twice=False),
    "noisy_student_svhn": noisy_student("efficientnet_b0", 32, 5)
    | {"data.batch_size": 128, "unlabelled.ratio": 5, "unlabelled.name": "svhn", "unlabelled.split": "extra", "optim.weight_decay": 1e-4, "optim.lr": 0.008},
    "fixmatch": {"data.fraction": 0.1, "unlabelled": "WeakAndStrong", "unlabelled.ratio": 7, "task": "FixMatch", "task.threshold": 0.95, "task.weight": 1.0},
    "deit_small": DEIT | {"model.name": "deit_small_patch16_224"},
    "deit_tiny": DEIT | {"model.name": "deit_tiny_patch16_224"},
    "swin_t": SWIN,
    "swin_s": SWIN | {"model.name": "swin_small_patch4_window7_224", "model.drop_path": 0.3},
    "swin_b": SWIN | {"model.name": "swin_base_patch4_window7_224", "model.drop_path": 0.5},
    "swin_small_data": SMALL_SWIN,
    "vit_b16": {name: value for name, value in VIT.items() if not name.startswith("sam")} | {"sam": None},
    "vit_sam": VIT | {"sam.rho": 0.2},
    "vit_b32_sam": VIT | {"model.name": "vit_base_patch32_224", "sam.rho": 0.15},
    "vit_s8_sam": VIT | {"model.name": "vit_small_patch8_224", "sam.rho": 0.15},
    "vit_s14_sam": VIT | {"model.name": "vit_small_patch14_224", "sam.rho": 0.1},
    "vit_s16_sam": VIT | {"model.name": "vit_small_patch16_224", "sam.rho": 0.1},
    "vit_s32_sam": VIT | {"model.name": "vit_small_patch32_224", "sam.rho": 0.05},
    "augmix_cifar": AUGMIX,
    "augmix_cifar_allconv": AUGMIX | {"model.name": "allconv"},
    "augmix_cifar_resnext": AUGMIX | {"model.name": "resnext29_4x32d", "train.epochs": 200},
    "augmix_cifar_densenet": AUGMIX | {"model.name": "densenet_40_12", "optim.weight_decay": 1e-4, "train.epochs": 200},
    "swin_t_drloc": DRLOC,
    "t2t_14_drloc": DRLOC | {"model.name": "t2t_vit_14", "model.drop_path": 0.1, "task.weight": 0.1},
    "cvt_13_drloc": DRLOC | {"model.name": "cvt_drloc_13", "model.drop_path": None, "task.weight": 0.1},
    "resnet50_drloc": DRLOC | {"model.name": "resnet50", "model.drop_path": None, "task.weight": 0.1},
    "vit_b_drloc": DRLOC | {"model.name": "vit_drloc_base_patch16_224", "model.drop_path": None, "model.options": {"dropout": 0.1}, "task.weight": 0.1},
}
# epoch -> learning rate of the whole batch, at 0, the end of the warm-up, the middle and the last
RATES = {
    "deit": {0: 1e-6, 1: 2.008e-4, 4: 8.002e-4, 5: 9.99321619703514e-4, 150: 5.05e-4, 299: 1.002714116407149e-5},
    "swin_t": {0: 1e-6, 20: 1e-3, 160: 5.05e-4, 299: 1.0031156906423219e-5},
    "swin_t_drloc": {0: 1e-6, 19: 9.5005e-4, 20: 9.891830623632338e-4, 100: 7.525e-4},
    "augmix_cifar": {0: 0.1, 50: 0.0500005},
}


def value_at(recipe: Recipe, path: str):
    value = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return type(value).__name__ if dataclasses.is_dataclass(value) else value


def assert_resolved_as(name: str, row: dict[str, object]) -> None:
    recipe = get_recipe(name).resolved(world=8)
    assert recipe.name == name
    for path, published in row.items():
        found = value_at(recipe, path)
        assert found == (pytest.approx(published, rel=1e-12) if isinstance(published, float) else published), path


@pytest.mark.parametrize("name", TABLE)
def test_resolved_values_are_the_tables(name):
    assert_resolved_as(name, TABLE[name])


@pytest.mark.parametrize("name", RATES)
def test_learning_rates_are_the_tables(name):
    recipe = get_recipe(name).resolved(world=8)
    updates = 50
    schedule = recipe.schedule.build(recipe.optim.lr, recipe.train.epochs, updates)
    for epoch, rate in RATES[name].items():
        # SWIN's golden end is that of a base of 1e-3 and an end of 1e-5, as resolved for 1024 images
        assert schedule(epoch * updates) == pytest.approx(rate, rel=1e-12), epoch


def test_a_rate_for_an_epoch_stays_within_it():
    recipe = get_recipe("deit").resolved()
    schedule = recipe.schedule.build(recipe.optim.lr, recipe.train.epochs, 100)
    assert len({schedule(update) for update in range(200, 300)}) == 1
    assert schedule(300) > schedule(299)


def test_warm_up_in_updates_ends_at_its_update():
    recipe = get_recipe("vit_sam")
    updates = IMAGENET // 4096
    schedule = recipe.schedule.build(recipe.optim.lr, recipe.train.epochs, updates)
    assert schedule(0) == 0.0
    assert schedule(5_000) == pytest.approx(1.5e-3)
    assert schedule(9_999) < schedule(10_000) == pytest.approx(3e-3)
    middle = 10_000 + (300 * updates - 10_000) // 2
    assert schedule(middle) == pytest.approx(1.5e-3, rel=1e-6)


def test_the_weight_of_drloc_follows_the_published_line():
    task = get_recipe("swin_t_drloc").task
    assert [task.weight_at(epoch) for epoch in (0, 10, 20, 100, 300)] == pytest.approx([0, 0.25, 0.5, 0.5 * 200 / 280, 0])


DEIT_B = 768 * 768 + 12 * 12 * 768**2 + 768 * 1000
SWIN_T = 48 * 96 + 12 * sum(depth * dim**2 for depth, dim in ((2, 96), (2, 192), (6, 384), (2, 768))) + 8 * sum(dim**2 for dim in (96, 192, 384))


@pytest.mark.parametrize(
    ("name", "classes", "decayed"),
    [
        ("deit", 1000, DEIT_B),
        ("vit_sam", 1000, DEIT_B),
        ("swin_t", 1000, SWIN_T + 768 * 1000),
        # the auxiliary head's three matrices decay as well
        ("swin_t_drloc", 10, SWIN_T + 768 * 10 + 2 * 768 * 512 + 512 * 512 + 512 * 2),
        ("swin_small_data", 10, 7_073_188),
    ],
)
def test_what_decays(name, classes, decayed):
    recipe = get_recipe(name)
    groups = recipe.optim.groups(task_without_memory(recipe, classes))
    count = dict.fromkeys((0.0, recipe.optim.weight_decay), 0)
    for group in groups:
        count[group["weight_decay"]] += sum(param.numel() for param in group["params"])
    assert count[recipe.optim.weight_decay] == decayed


@pytest.mark.parametrize(("per", "world", "rate"), [("PerSamples", 1, 5e-4 * 2), ("PerProcess", 8, 5e-4 * 8)])
def test_rates_scale_with_the_run(per, world, rate):
    import vtkernels.recipes as recipes

    recipe = get_recipe("swin_t")
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, scaling=getattr(recipes, per)()))
    resolved = recipe.resolved(world)
    assert resolved.optim.lr == pytest.approx(rate)
    # without `ends` those of the schedule stay, and nothing is scaled twice
    assert resolved.schedule == recipe.schedule
    assert resolved.resolved(world) == resolved
