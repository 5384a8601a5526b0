"""Recipes in stages, transfers and further papers against the published tables, field by field."""

from dataclasses import replace

import pytest
import torch
from test_recipe_tables import (
    CCT,
    CIFAR,
    DEIT_384,
    DEIT_III,
    FINETUNE,
    MIXER,
    MIXER_PLAIN,
    PLAIN,
    RESNET,
    RESNET_PLAIN,
    SAM_CIFAR,
    UNTOLD,
    VIT_PLAIN,
    differences,
    small,
)
from test_recipe_tables import ROWS as FURTHER_ROWS
from test_recipe_tables import TABLE as FURTHER_TABLE
from test_recipe_values import DISTILLED, SWIN, assert_resolved_as
from test_recipe_values import TABLE as FIRST_TABLE

from vtkernels.models import create_model
from vtkernels.recipes import Constant, build, get_recipe, list_recipes, tiny
from vtkernels.recipes._plan import task_without_memory

SWIN_21K = SWIN | {
    "data.name": "imagenet-21k",
    "data.batch_size": 4096,
    "optim.lr": 1.25e-4 * 8,
    "schedule.warmup": 5,
    "schedule.warmup_lr": 1.25e-7 * 8,
    "schedule.final_lr": 1.25e-6 * 8,
    "train.epochs": 90,
}
SWIN_TUNED = SWIN | {
    "optim.lr": 2e-5 * 2,
    "optim.weight_decay": 1e-8,
    "schedule.warmup": 5,
    "schedule.warmup_lr": 2e-8 * 2,
    "schedule.final_lr": 2e-7 * 2,
    "train.epochs": 30,
}
SWIN_384 = SWIN_TUNED | {"data.size": 384, "data.eval_crop": 1.0, "data.squash": True}
SWINS = {
    "t": ("swin_tiny_patch4_window7_224", 0.1),
    "s": ("swin_small_patch4_window7_224", 0.2),
    "b": ("swin_base_patch4_window7_224", 0.2),
    "l": ("swin_large_patch4_window7_224", 0.2),
}
DEIT_III_21K = DEIT_III | {
    "data.name": "imagenet-21k",
    "data.size": 224,
    "augment.crop": "PaddedCrop",
    "augment.crop.padding": 4,
    "augment.crop.mode": "reflect",
    "augment.crop.resize": True,
    "augment.repeats": 1,
    "mix.mixup": 0.0,
    "task.loss": "CrossEntropy",
    "task.loss.smoothing": 0.1,
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.02,
    "train.epochs": 240,
}
# stochastic depth of the first stage, and of the second
DEIT_IIIS = {"_small": (0.05, 0.05), "": (0.1, 0.15), "_large": (0.3, 0.4), "_huge": (0.5, 0.45)}
DEIT_III_NAMES = {"_small": "deit3_small_patch16_224", "": "deit3_base_patch16_224", "_large": "deit3_large_patch16_224", "_huge": "deit3_huge_patch14_224"}
VIT = PLAIN | {
    "model.name": "vit_base_patch16_224",
    "model.options": {"dropout": 0.1},
    "data.batch_size": 4096,
    "optim": "AdamW",
    "optim.lr": 3e-3,
    "optim.weight_decay": 0.3,
    "schedule": "Cosine",
    "schedule.warmup": 3.4,
    "train.epochs": 300,
    "train.clip_norm": 1.0,
    "train.ema_decay": None,
}
BIG_VISION = MIXER | {"model.name": "vit_base_patch16_224", "model.drop_path": None, "model.head_bias": -6.9, "schedule": "Cosine", "schedule.final_lr": 0.0}
AUGMENTED = {"augment.policy": "RandAugment", "augment.policy.spec": "rand-m15-n2-p1-mmax30", "mix": "Mixup", "mix.mixup": 0.5, "mix.cutmix": 0.0, "sam": None}
TRANSFER = PLAIN | {
    "model.name": "t2t_vit_14",
    "model.checkpoint": "runs/t2t",
    "data.name": "cifar10",
    "data.size": 224,
    "data.batch_size": 64,
    "augment.crop.padding": 28,
    "augment.crop.resize": True,
    "augment.flip": 0.5,
    "task.loss.smoothing": 0.0,
    "optim": "SGD",
    "optim.lr": 0.05,
    "optim.momentum": 0.9,
    "optim.weight_decay": 5e-4,
    "optim.layers": "trunk",
    "optim.layer_decay": 0.01,
    "schedule": "Cosine",
    "schedule.final_lr": 2e-4,
    "train.epochs": 60,
}
SGD_PAPER = PLAIN | {
    "model.name": "wrn_28_10",
    "data.batch_size": 128,
    "optim": "SGD",
    "optim.lr": 0.1,
    "optim.momentum": 0.9,
    "optim.nesterov": True,
    "optim.weight_decay": 1e-3,
    "schedule": "Cosine",
    "schedule.warmup": 0,
    "schedule.final_lr": 0.0,
    "train.epochs": 200,
    "train.clip_norm": 5.0,
    "sam": None,
}
SAM_IMAGENET = {
    "data.batch_size": 4096,
    "task.loss.smoothing": 0.1,
    "optim": "SGD",
    "optim.lr": 1.0,
    "optim.weight_decay": 1e-4,
    "sam": "SAM",
    "sam.rho": 0.05,
}
EFFICIENTNET = {
    "model.name": "efficientnet_b0",
    "model.drop_path": 0.2,
    "model.options": {"dropout": 0.2},
    "data.size": 224,
    "data.batch_size": 4096,
    "augment.policy": "AutoAugment",
    "optim": "RMSprop",
    "optim.lr": 0.256,
    "optim.alpha": 0.9,
    "optim.momentum": 0.9,
    "optim.eps": 1e-3,
    "optim.weight_decay": 1e-5,
    "schedule": "Decay",
    "schedule.every": 2.4,
    "schedule.factor": 0.97,
    "train.ema_decay": 0.9999,
}
ADVERSARIAL = {
    "data.batch_size": 128,
    "task": "Adversarial",
    "task.epsilon": 8 / 255,
    "task.step": 2 / 255,
    "task.steps": 7,
    "optim": "SGD",
    "optim.lr": 0.1,
    "optim.weight_decay": 5e-4,
    "schedule": "Decay",
    "schedule.every": 50,
    "schedule.factor": 0.1,
    "train.epochs": 150,
}
CAIT_TAUGHT = DISTILLED | {"model.name": "cait_s24_224", "model.drop_path": 0.1, "data.eval_crop": 1.0, "train.epochs": 400}
TABLE = {
    **{f"swin_{size}_21k": SWIN_21K | {"model.name": name, "model.drop_path": rate} for size, (name, rate) in SWINS.items()},
    **{
        f"swin_{size}_21k_1k": SWIN_TUNED | {"model.name": name, "model.drop_path": rate, "model.checkpoint": f"timm:{name}.ms_in22k"}
        for size, (name, rate) in SWINS.items()
    },
    "swin_b_21k_1k_384": SWIN_384 | {"model.name": "swin_base_patch4_window12_384", "model.drop_path": 0.2},
    "swin_l_21k_1k_384": SWIN_384 | {"model.name": "swin_large_patch4_window12_384", "model.drop_path": 0.2},
    "swin_b_384": SWIN_384 | {"model.name": "swin_base_patch4_window12_384", "model.drop_path": 0.5},
    "swin_b_simmim": SWIN
    | {
        "model.name": "swin_base_patch4_window7_224",
        "model.drop_path": 0.1,
        "optim.lr": 1.25e-3 * 2,
        "optim.layer_decay": 0.8,
        "optim.layers": "simmim",
        "train.epochs": 100,
    },
    **{f"deit_iii{size}_21k": DEIT_III_21K | {"model.name": DEIT_III_NAMES[size], "model.drop_path": rates[0]} for size, rates in DEIT_IIIS.items()},
    # published at 128, of which patches of 14 see 126
    "deit_iii_huge_21k": DEIT_III_21K | {"model.name": "deit3_huge_patch14_224", "model.drop_path": 0.5, "data.size": 126, "train.epochs": 90},
    **{
        f"deit_iii{size}_21k_1k": DEIT_III_21K
        | {
            "model.name": DEIT_III_NAMES[size],
            "model.drop_path": rates[1],
            "model.checkpoint": f"runs/deit_iii{size}_21k",
            "data.name": "imagenet",
            "optim.lr": 3e-4,
            "train.epochs": 50,
        }
        for size, rates in DEIT_IIIS.items()
    },
    "vit": VIT,
    "vit_21k": VIT
    | {
        "model.head_bias": -10.0,
        "data.name": "imagenet-21k",
        "optim.lr": 1e-3,
        "optim.weight_decay": 0.03,
        "schedule": "Linear",
        "schedule.warmup": 0,
        "schedule.warmup_updates": 10_000,
        "schedule.final_lr": 1e-5,
        "train.epochs": 90,
    },
    "vit_big_vision": BIG_VISION,
    "vit_s16_big_vision": BIG_VISION
    | {
        "model.name": "vit_small_patch16_224",
        "data.batch_size": 1024,
        "augment.policy.spec": "rand-m10-n2-p1-mmax30",
        "mix.mixup": 0.2,
        "train.epochs": 90,
    },
    "vit_b16_augmented": VIT_PLAIN | AUGMENTED,
    "mixer_b16_augmented": MIXER_PLAIN | AUGMENTED,
    "resnet152_augmented": RESNET_PLAIN | AUGMENTED,
    "vit_b32_gsam": VIT_PLAIN
    | {
        "model.name": "vit_base_patch32_224",
        "model.head_bias": -10.0,
        "task.loss": "BinaryCrossEntropy",
        # times the rate, 1e-3 of a weight in each step
        "optim.weight_decay": 1 / 3,
        "optim.decayed": "kernels",
        "schedule": "Linear",
        "schedule.final_lr": 3e-5,
        "sam": "GSAM",
        "sam.rho_max": 0.6,
        "sam.rho_min": 0.1,
        "sam.alpha": 0.6,
    },
    "deit_distilled_1000": DISTILLED | {"train.epochs": 1000},
    "deit_distilled_384": {name: value for name, value in DEIT_384.items() if not name.startswith("task")}
    | {
        "model.name": "deit_base_distilled_patch16_384",
        "model.checkpoint": "runs/deit_distilled_1000",
        "task": "Distillation",
        "task.inner.eval_mode": True,
        "task.form": "hard",
        "task.alpha": 0.5,
    },
    "finetune_augreg": FINETUNE | {"schedule.warmup_updates": 100, "train.epochs": 5},
    "finetune_mixer": FINETUNE | {"model.name": "mixer_b16_224", "data.name": "cifar10", "data.size": 224},
    "cait_distilled": CAIT_TAUGHT,
    "cait_distilled-m36": CAIT_TAUGHT | {"model.name": "cait_m36_224", "model.drop_path": 0.3},
    "t2t_transfer": TRANSFER,
    "t2t_transfer-pets": TRANSFER | {"data.name": "pets"},
    "t2t_19_transfer-cifar100": TRANSFER | {"model.name": "t2t_vit_19", "model.checkpoint": "runs/t2t_19", "data.name": "cifar100"},
    "t2t_19_transfer": TRANSFER | {"model.name": "t2t_vit_19", "model.checkpoint": "runs/t2t_19"},
    "vitae_transfer": TRANSFER | {"model.name": "vitae_tiny", "model.checkpoint": "runs/vitae"},
    "vitae_small_transfer": TRANSFER | {"model.name": "vitae_small", "model.checkpoint": "runs/vitae_small"},
    "swin_small_data_spt_lsa": small("swin_sl_patch2_window4_32"),
    **{
        f"{name}-tiny-imagenet": small(model) | {"data.name": "tiny-imagenet", "data.size": 64, "augment.policy.policy": "imagenet"}
        for name, model in {
            "swin_small_data": "swin_small_data_patch4_window4_64",
            "swin_small_data_spt_lsa": "swin_sl_patch4_window4_64",
            "vit_small_data": "vit_small_data_patch8_64",
            "vit_small_data_spt_lsa": "vit_small_data_spt_lsa_patch8_64",
            "cait_small_data": "cait_small_data_patch8_64",
            "cait_small_data_spt_lsa": "cait_small_data_spt_lsa_patch8_64",
            "t2t_small_data": "t2t_vit_small_data_64",
        }.items()
    },
    "cct_1500": CCT | {"mix.off_epoch": None, "optim.lr": 5e-4, "optim.weight_decay": 0.05, "schedule.span": 1500, "train.epochs": 1510},
    "cct_cifar100_1500": CCT
    | {
        "data.name": "cifar100",
        "mix.off_epoch": None,
        "optim.lr": 7e-4,
        "optim.weight_decay": 0.05,
        "schedule.warmup_lr": 1e-6,
        "schedule.span": 1500,
        "train.epochs": 1510,
    },
    "sgd_paper_cifar": SGD_PAPER,
    "sam_paper_cifar": SGD_PAPER | {"sam": "SAM", "sam.rho": 0.05},
    "sam_paper_cifar-cutout": SGD_PAPER | {"erase": "Cutout", "erase.length": 16, "sam": "SAM"},
    "sam_paper_cifar-autoaugment": SGD_PAPER | {"augment.policy": "AutoAugment", "augment.policy.policy": "cifar", "sam": "SAM"},
    "asam_paper_cifar": {name: value for name, value in SAM_CIFAR.items() if not name.startswith(("erase", "schedule"))}
    | {"erase": None, "task.loss.smoothing": 0.1, "schedule": "Cosine", "sam": "ASAM", "sam.rho": 0.5},
    "asam_paper_cifar-cifar100": {"data.name": "cifar100", "sam": "ASAM", "sam.rho": 1.0},
    "sam_paper_resnet50": SAM_IMAGENET | {"model.name": "resnet50", "train.epochs": 100},
    "sam_paper_resnet101-200": SAM_IMAGENET | {"model.name": "resnet101", "train.epochs": 200},
    "sam_paper_resnet101": SAM_IMAGENET | {"model.name": "resnet101", "train.epochs": 100},
    "sam_paper_resnet152": SAM_IMAGENET | {"model.name": "resnet152", "train.epochs": 100},
    "sam_paper_resnet152-400": SAM_IMAGENET | {"model.name": "resnet152", "train.epochs": 400},
    "efficientnet": EFFICIENTNET,
    "efficientnet-b7": EFFICIENTNET | {"model.name": "efficientnet_b7", "model.options": {"dropout": 0.5}, "data.size": 600},
    "adversarial_cifar": ADVERSARIAL,
    "adversarial_imagenet": ADVERSARIAL
    | {"data.batch_size": 256, "task.epsilon": 4 / 255, "task.step": 1 / 255, "optim.weight_decay": 1e-4, "train.epochs": 200},
    "cutout_cifar": CIFAR | {"erase": "Cutout", "erase.length": 16, "erase.prob": 1.0},
    "cutout_cifar-cifar100": CIFAR | {"data.name": "cifar100", "erase": "Cutout", "erase.length": 8},
    "erasing_cifar": CIFAR
    | {
        "erase": "RandomErasing",
        "erase.prob": 0.5,
        "erase.area": (0.02, 0.4),
        "erase.aspect": 0.3,
        "erase.mode": "const",
        "schedule.at": (1 / 2, 3 / 4),
        "schedule.factor": 0.1,
        "train.epochs": 300,
    },
    "vit_small_data_plain": {name: value for name, value in small("vit_small_data_patch4_32").items() if not name.startswith("augment.policy")}
    | {"augment.policy": None, "schedule.warmup": 10, "train.epochs": 100},
    **{
        f"swinv2_{size}": SWIN | {"model.name": f"swinv2_{name}_window8_256", "model.drop_path": rate, "data.size": 256}
        for size, name, rate in (("t", "tiny", 0.2), ("s", "small", 0.3), ("b", "base", 0.5))
    },
    "sam_paper_finetune": {
        "model.name": "efficientnet_b7",
        "model.checkpoint": "runs/efficientnet-b7",
        "data.size": 600,
        "data.batch_size": 512,
        "task.loss.smoothing": 0.1,
        "optim": "SGD",
        "optim.lr": 0.1,
        "sam": "SAM",
        "sam.rho": 0.1,
        "train.epochs": 10,
        "train.clip_norm": 1.0,
    },
    "cutmix_imagenet": RESNET | {"mix": "Mixup", "mix.mixup": 0.0, "mix.cutmix": 1.0, "mix.prob": 1.0, "train.epochs": 300},
    "ade20k_upernet_s": {"model.name": "swin_small_patch4_window7_224", "model.drop_path": 0.3},
    "ade20k_upernet_b": {"model.name": "swin_base_patch4_window7_224", "model.drop_path": 0.3},
    **{f"swin_t_drloc-{data}": {"data.name": data, "task": "Drloc", "task.weight": 0.5} for data in ("imagenet", "imagenet-100")},
}


@pytest.mark.parametrize("name", TABLE)
def test_resolved_values_are_the_tables_of_later_stages(name):
    assert_resolved_as(name, TABLE[name])


def test_every_recipe_is_in_a_table():
    told = {name.partition("-")[0] for name in (*FIRST_TABLE, *FURTHER_TABLE, *FURTHER_ROWS, *TABLE)}
    assert set(list_recipes()) - told == UNTOLD


def test_later_sizes_of_a_segmenter_differ_in_the_model_alone():
    for name in ("ade20k_upernet_s", "ade20k_upernet_b"):
        assert differences(get_recipe("ade20k_upernet"), get_recipe(name)) - {"name"} <= {"model.name", "model.drop_path"}


def test_simmim_counts_layers_as_its_code():
    recipe = get_recipe("swin_b_simmim")
    task = task_without_memory(recipe, 1000)
    names = {id(param): name for name, param in task.model.named_parameters()}
    scales = {names[id(param)]: group["lr_scale"] for group in recipe.optim.groups(task) for param in group["params"]}
    # 24 blocks between the patches and the head; the first merging belongs to block 2
    assert scales["head.fc.weight"] == 1.0
    assert scales["patch_embed.proj.weight"] == pytest.approx(0.8**25)
    assert scales["layers.1.downsample.reduction.weight"] == scales["layers.0.blocks.1.mlp.fc1.weight"] == pytest.approx(0.8**23)


def test_a_trunk_learns_a_hundred_times_more_slowly():
    recipe = get_recipe("t2t_transfer")
    groups = recipe.optim.groups(task_without_memory(recipe, 10))
    of_head = [param.numel() for group in groups if group["lr_scale"] == 1.0 for param in group["params"]]
    assert sorted(of_head) == [10, 384 * 10]
    assert {group["lr_scale"] for group in groups} == {0.01, 1.0}


def test_a_stage_begins_with_the_weights_of_the_one_before(tmp_path):
    first = replace(tiny(get_recipe("t2t"), epochs=1), schedule=Constant())
    trainer = build(replace(first, data=replace(first.data, fraction=0.1)), folder=tmp_path)
    trainer.fit()
    # on another set, of other classes
    second = tiny(get_recipe("t2t_transfer-cars"), data="shapes", epochs=1)
    tuned = build(replace(second, model=replace(second.model, checkpoint=str(tmp_path)))).model
    before, after = create_model(checkpoint=tmp_path).state_dict(), tuned.state_dict()
    assert {name for name in after if after[name].shape != before[name].shape or not torch.equal(after[name], before[name])} == {"head.weight", "head.bias"}
    assert after["head.bias"].shape == (8,)


def test_the_first_bias_of_a_classifier():
    assert get_recipe("deit").model.head_bias is None
    model = get_recipe("vit_b32_gsam").model
    built = type(model)(name="vit_nano_patch4_32", head_bias=model.head_bias).build(32, 10)
    assert built.head.bias.tolist() == [-10.0] * 10
