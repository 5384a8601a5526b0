"""Recipes of the other families against the published tables; and each row of an ablation differs from its base in what it is about."""

import dataclasses

import pytest
from test_recipe_values import AUGMIX, DEIT, DRLOC, RATES, SMALL_SWIN, SWIN, VIT, assert_resolved_as, value_at

from vtkernels.recipes import Recipe, RecipeError, choices_of, describe_recipe, get_recipe, list_recipes

PLAIN = {"augment.policy": None, "mix": None, "erase": None}
DEIT_III = {
    "model.name": "deit3_base_patch16_224",
    "model.drop_path": 0.2,
    "data.size": 192,
    "data.batch_size": 2048,
    "data.eval_crop": 1.0,
    "augment.policy": "ThreeAugment",
    "augment.policy.jitter": 0.3,
    "augment.repeats": 3,
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "erase": None,
    "task.loss": "BinaryCrossEntropy",
    "task.loss.smoothing": 0.0,
    "optim": "LAMB",
    "optim.lr": 3e-3,
    "optim.weight_decay": 0.05,
    "optim.max_grad_norm": 1.0,
    "schedule.warmup": 5,
    "schedule.warmup_lr": 1e-6,
    "train.epochs": 800,
    "train.ema_decay": None,
}
DEIT_III_TUNED = {
    "model.name": "deit3_base_patch16_224",
    "data.batch_size": 512,
    "augment.policy.spec": "rand-m9-mstd0.5-inc1",
    "augment.repeats": 1,
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "task.loss": "CrossEntropy",
    "task.loss.smoothing": 0.1,
    "optim": "AdamW",
    "optim.lr": 1e-5,
    "optim.weight_decay": 0.1,
    "schedule.warmup": 5,
    "train.epochs": 20,
}
DEIT_384 = {
    "model.name": "deit_base_patch16_384",
    "model.trained": None,
    "data.size": 384,
    "data.batch_size": 512,
    "task.eval_mode": True,
    "optim.lr": 5e-6,
    "optim.weight_decay": 1e-8,
    "schedule": "Constant",
    "train.epochs": 30,
}
CAIT = DEIT | {"data.eval_crop": 1.0, "train.epochs": 400}
T2T = SWIN | {
    "model.name": "t2t_vit_14",
    "model.drop_path": 0.1,
    "data.batch_size": 512,
    "data.eval_crop": 0.9,
    "augment.crop.filter": "random",
    "optim.lr": 5e-4,
    "schedule.warmup": 10,
    "schedule.prefix": False,
    "schedule.span": 300,
    "schedule.per": "epoch",
    "train.epochs": 310,
    "train.clip_norm": None,
    "train.ema_decay": 0.99996,
}
CVT = SWIN | {
    "model.name": "cvt_13",
    "model.drop_path": 0.1,
    "data.batch_size": 2048,
    # on eight processes
    "optim.lr": 2e-3,
    "schedule.warmup": 5,
    "schedule.prefix": False,
    "schedule.per": "epoch",
    "train.clip_norm": None,
}
VITAE = T2T | {"model.name": "vitae_tiny", "optim.lr": 1e-3, "optim.weight_decay": 0.03, "schedule.span": None, "train.epochs": 300}
VITAE_V2 = VITAE | {"model.name": "vitaev2_small", "data.batch_size": 1024, "optim.lr": 5e-4, "optim.weight_decay": 0.05}
POOLFORMER = CVT | {"model.name": "poolformer_s12", "data.batch_size": 1024, "data.eval_crop": 0.9, "optim.lr": 1e-3}
MIXER = {
    "model.name": "mixer_b16_224",
    "model.drop_path": 0.1,
    "model.head_bias": -6.9,
    "data.batch_size": 4096,
    "augment.policy.spec": "rand-m15-n2-p1-mmax30",
    "mix.mixup": 0.5,
    "mix.cutmix": 0.0,
    "optim.lr": 1e-3,
    # times the rate, 1e-4 of a weight in each step
    "optim.weight_decay": 0.1,
    "schedule": "Linear",
    "schedule.warmup_updates": 10_000,
    "schedule.final_lr": 1e-5,
    "train.epochs": 300,
    "train.clip_norm": 1.0,
}
VIT_PLAIN = {name: value for name, value in VIT.items() if not name.startswith("sam")} | {"sam": None}
MIXER_PLAIN = VIT_PLAIN | {"model.name": "mixer_b16_224", "schedule": "Linear"}
RESNET_PLAIN = PLAIN | {
    "model.name": "resnet152",
    "data.batch_size": 4096,
    "optim": "SGD",
    "optim.lr": 1.6,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-3,
    "schedule": "Cosine",
    "schedule.warmup_updates": 5_000,
    "train.epochs": 90,
    "train.clip_norm": None,
    "sam": None,
}
RESNET = PLAIN | {
    "model.name": "resnet50",
    "data.size": 224,
    "data.batch_size": 256,
    "task.loss.smoothing": 0.0,
    "optim": "SGD",
    "optim.lr": 0.1,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "schedule": "Steps",
    "schedule.at": (1 / 3, 2 / 3),
    "schedule.factor": 0.1,
    "train.epochs": 90,
}
CIFAR = RESNET | {
    "model.name": "resnet18_cifar",
    "data.name": "cifar10",
    "data.size": 32,
    "data.batch_size": 128,
    "augment.crop.padding": 4,
    "augment.flip": 0.5,
    "optim.weight_decay": 5e-4,
    "schedule.at": (0.3, 0.6, 0.8),
    "schedule.factor": 0.2,
    "train.epochs": 200,
}
SAM_CIFAR = CIFAR | {
    "model.name": "wrn_16_8",
    "erase": "Cutout",
    "erase.length": 16,
    "erase.prob": 0.5,
    "task.loss.smoothing": 1 / 9,
    "sam": None,
}
NOISY = PLAIN | {
    "model.name": "resnet32",
    "data.noise": 0.2,
    "data.noise_among": "all",
    "data.relabel": None,
    "optim.lr": 0.1,
    "optim.nesterov": True,
    "optim.weight_decay": 1e-3,
    "train.epochs": 200,
    "sam": None,
}
CCT = {
    "model.name": "cct_7_3x1_32",
    "data.name": "cifar10",
    "data.batch_size": 128,
    "augment.crop.scale": (0.8, 1.0),
    "augment.policy.spec": "rand-m9-mstd0.5-inc1",
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "mix.off_epoch": 175,
    "erase.prob": 0.25,
    "task.loss.smoothing": 0.1,
    "optim.lr": 5.5e-4,
    "optim.weight_decay": 0.06,
    "schedule.warmup": 10,
    "schedule.warmup_lr": 1e-5,
    "schedule.final_lr": 1e-5,
    "schedule.span": 300,
    "train.epochs": 310,
}
FINETUNE = PLAIN | {
    "data.size": 384,
    "data.batch_size": 512,
    "optim": "SGD",
    "optim.lr": 0.03,
    "optim.momentum": 0.9,
    "optim.weight_decay": 0.0,
    "schedule.warmup_updates": 500,
    "train.clip_norm": 1.0,
}
AUGMIX_IMAGENET = {name: value for name, value in RESNET.items() if not name.startswith("augment")} | {
    "augment.policy.severity": 1.0,
    "augment.policy.width": 3,
    "augment.policy.depth": -1,
    "task.loss.weight": 12.0,
}
WITHOUT_DRLOC = {name: value for name, value in DRLOC.items() if not name.startswith("task")} | {"task": "Classification"}


def small(name: str) -> dict:
    return SMALL_SWIN | {"model.name": name}


def rows(base: dict, named: dict[str, tuple]) -> dict[str, dict]:
    """Recipes of one base that differ in the model and its stochastic depth."""
    return {name: base | {"model.name": model, "model.drop_path": rate} for name, (model, rate) in named.items()}


CAITS = {"xxs24": 0.05, "xxs36": 0.1, "xs24": 0.05, "xs36": 0.1, "s36": 0.2, "s48": 0.3, "m24": 0.2, "m36": 0.3, "m48": 0.4}
RADII = {
    "mixer_s32": 0.1, "mixer_s16": 0.15, "mixer_s8": 0.2, "mixer_b32": 0.35, "mixer_b8": 0.6,
    "resnet50": 0.02, "resnet101": 0.05, "resnet50x2": 0.05, "resnet101x2": 0.05, "resnet152x2": 0.05,
}  # fmt: skip
SCRATCH = {"t2t_14": ("t2t_vit_14", 0.1), "cvt_13": ("cvt_drloc_13", None), "resnet50": ("resnet50", None), "vit_b": ("vit_drloc_base_patch16_224", None)}
TABLE = {
    "deit_iii": DEIT_III,
    "deit_iii_small": DEIT_III | {"model.name": "deit3_small_patch16_224", "model.drop_path": 0.05, "data.size": 224, "optim.lr": 4e-3},
    "deit_iii_large": DEIT_III | {"model.name": "deit3_large_patch16_224", "model.drop_path": 0.45},
    # published at 160, of which patches of 14 see 154
    "deit_iii_huge": DEIT_III | {"model.name": "deit3_huge_patch14_224", "model.drop_path": 0.6, "data.size": 154},
    "deit_iii_224": DEIT_III_TUNED | {"data.size": 224, "model.drop_path": 0.2},
    "deit_iii_large_224": DEIT_III_TUNED | {"model.name": "deit3_large_patch16_224", "data.size": 224, "model.drop_path": 0.45},
    "deit_iii_huge_224": DEIT_III_TUNED | {"model.name": "deit3_huge_patch14_224", "data.size": 224, "model.drop_path": 0.55},
    "deit_iii_small_384": DEIT_III_TUNED | {"model.name": "deit3_small_patch16_224", "data.size": 384, "model.drop_path": 0.0},
    "deit_iii_384": DEIT_III_TUNED | {"data.size": 384, "model.drop_path": 0.15},
    "deit_iii_large_384": DEIT_III_TUNED | {"model.name": "deit3_large_patch16_224", "data.size": 384, "model.drop_path": 0.4},
    "deit_384": DEIT_384,
    "deit_384_attention": DEIT_384 | {"model.trained": "AttentionOnly"},
    "finetune": FINETUNE | {"data.name": "cifar100", "train.epochs": 103},
    "finetune_cifar10": FINETUNE | {"data.name": "cifar10", "optim.lr": 0.01},
    "finetune_imagenet": FINETUNE | {"data.name": "imagenet", "train.epochs": 8},
    "linear_probe": PLAIN | {"model.trained": "HeadOnly", "augment.flip": 0.0, "task.eval_mode": True, "optim": "SGD"},
    "cait": CAIT | {"model.name": "cait_s24_224", "model.drop_path": 0.1},
    **rows(CAIT, {f"cait_{size}": (f"cait_{size}_224", rate) for size, rate in CAITS.items()}),
    "t2t": T2T,
    "t2t_19": T2T | {"model.name": "t2t_vit_19", "optim.weight_decay": 0.065},
    "t2t_24": T2T | {"model.name": "t2t_vit_24", "optim.weight_decay": 0.065},
    "t2t_transformer_14": T2T | {"model.name": "t2t_vit_t_14"},
    **{f"t2t_{depth}": T2T | {"model.name": f"t2t_vit_{depth}", "optim.lr": 1e-3, "optim.weight_decay": 0.03} for depth in (7, 10, 12)},
    "cvt": CVT,
    "cvt_21": CVT | {"model.name": "cvt_21", "data.batch_size": 1024, "optim.lr": 1e-3, "optim.weight_decay": 0.1},
    "vitae": VITAE,
    **rows(VITAE, {"vitae_6m": ("vitae_6m", 0.1), "vitae_small": ("vitae_small", 0.1)}),
    **rows(VITAE_V2, {"vitaev2": ("vitaev2_small", 0.1)}),
    "vitaev2_48m": VITAE_V2 | {"model.name": "vitaev2_48m", "model.drop_path": 0.25, "optim.weight_decay": 0.055},
    "vitaev2_base": VITAE_V2
    | {"model.name": "vitaev2_base", "model.drop_path": 0.4, "model.options": {"dropout": 0.1}, "optim.weight_decay": 0.065, "train.clip_norm": 5.0},
    "poolformer": POOLFORMER,
    **rows(POOLFORMER, {"poolformer_s24": ("poolformer_s24", 0.1), "poolformer_s36": ("poolformer_s36", 0.2)}),
    **rows(POOLFORMER | {"data.eval_crop": 0.95}, {"poolformer_m36": ("poolformer_m36", 0.3), "poolformer_m48": ("poolformer_m48", 0.4)}),
    "mixer": MIXER,
    "resmlp": DEIT | {"model.name": "resmlp_24_224", "optim": "LAMB", "optim.lr": 5e-3, "optim.weight_decay": 0.2, "optim.eps": 1e-6, "train.epochs": 400},
    "resmlp_12": {"model.name": "resmlp_12_224", "optim": "LAMB", "train.epochs": 400},
    "fnet": DEIT | {"model.name": "fnet_small_patch16_224"},
    "resnet50": RESNET,
    "resnet50_sgdw": RESNET | {"optim": "SGDW", "optim.weight_decay": 1e-3},
    "resnet_cifar": CIFAR,
    "resnet_cifar_sgdw": CIFAR | {"optim": "SGDW", "optim.weight_decay": 5e-3},
    "wrn_cifar": CIFAR | {"model.name": "wrn_28_10"},
    "mixup_cifar": CIFAR
    | {"mix": "Mixup", "mix.mixup": 1.0, "mix.cutmix": 0.0, "optim.weight_decay": 1e-4, "schedule.at": (0.5, 0.75), "schedule.factor": 0.1},
    "mixer_b16": MIXER_PLAIN,
    "resnet152_inception": RESNET_PLAIN,
    "mixer_sam": MIXER_PLAIN | {"sam": "SAM", "sam.rho": 0.6},
    "resnet_sam": RESNET_PLAIN | {"sam": "SAM", "sam.rho": 0.02},
    **{
        f"{name}_sam": (MIXER_PLAIN if name.startswith("mixer") else RESNET_PLAIN)
        | {"model.name": f"{name}_224" if name.startswith("mixer") else name, "sam": "SAM", "sam.rho": rho}
        for name, rho in RADII.items()
    },
    "vit_b16_augmented_sam": VIT
    | {"augment.policy": "RandAugment", "augment.policy.spec": "rand-m15-n2-p1-mmax30", "mix": "Mixup", "mix.mixup": 0.5, "sam.rho": 0.05},
    "sam_cifar_sgd": SAM_CIFAR,
    "sam_cifar": SAM_CIFAR | {"sam": "SAM", "sam.rho": 0.05, "sam.adaptive": False},
    "asam_cifar": SAM_CIFAR | {"sam": "SAM", "sam.rho": 2.0, "sam.adaptive": True},
    "noisy_labels_sgd": NOISY,
    "noisy_labels_sgd-80": NOISY | {"data.noise": 0.8},
    "noisy_labels_mixup": NOISY | {"mix": "Mixup", "mix.mixup": 1.0, "mix.cutmix": 0.0},
    "noisy_labels": NOISY | {"sam": "SAM", "sam.rho": 0.1},
    "noisy_labels-60": NOISY | {"data.noise": 0.6, "sam": "SAM", "sam.rho": 0.1},
    "noisy_labels-80": NOISY | {"data.noise": 0.8, "sam": "SAM", "sam.rho": 0.05},
    "noisy_labels_bootstrap": NOISY | {"data.relabel": "Bootstrap", "data.relabel.run": "runs/noisy_labels-20", "sam": "SAM", "sam.rho": 0.1},
    "noisy_labels_mixup_bootstrap": NOISY | {"data.relabel": "Bootstrap", "mix": "Mixup", "mix.mixup": 1.0},
    "augmix_imagenet": AUGMIX_IMAGENET,
    "swin_t_scratch": WITHOUT_DRLOC,
    **rows(WITHOUT_DRLOC, {f"{name}_scratch": values for name, values in SCRATCH.items()}),
    "vit_small_data": small("vit_small_data_patch4_32"),
    "vit_small_data_spt_lsa": small("vit_small_data_spt_lsa_patch4_32"),
    "cait_small_data": small("cait_small_data_patch4_32"),
    "cait_small_data_spt_lsa": small("cait_small_data_spt_lsa_patch4_32"),
    "t2t_small_data": small("t2t_vit_small_data_32"),
    "vit_small_data-svhn": small("vit_small_data_patch4_32") | {"data.name": "svhn", "augment.policy.policy": "svhn"},
    "cct": CCT,
    "cct_cifar100": CCT | {"data.name": "cifar100", "mix.off_epoch": None, "optim.lr": 6e-4, "schedule.warmup_lr": 1e-6},
}
UNTOLD = {"smoke", "demo", "bert_like", "noisy_student_digits", "ade20k_upernet", "coco_detection", "shapes_segmentation", "shapes_detection"}
# row -> (its base, the fields it is about and their values)
ROWS = {
    "deit_sgd": ("deit", {"optim": "SGD"}),
    "deit_384_sgd": ("deit_384", {"optim": "SGD"}),
    "deit_no_randaugment": ("deit", {"augment.policy": None}),
    "deit_autoaugment": ("deit", {"augment.policy": "AutoAugment"}),
    "deit_no_mixup": ("deit", {"mix.mixup": 0.0}),
    "deit_no_cutmix": ("deit", {"mix.cutmix": 0.0}),
    "deit_no_mixing": ("deit", {"mix": None}),
    "deit_no_erasing": ("deit", {"erase": None}),
    "deit_no_drop_path": ("deit", {"model.drop_path": 0.0}),
    "deit_no_repeats": ("deit", {"augment.repeats": 1}),
    "deit_dropout": ("deit", {"model.options": {"dropout": 0.1}}),
    "deit_no_ema": ("deit", {"train.ema_decay": None}),
    "augmix_cifar_standard": ("augmix_cifar", {"augment.policy": None, "task.loss": "CrossEntropy"}),
    "augmix_cifar_cutout": ("augmix_cifar_standard", {"erase": "Cutout"}),
    "augmix_cifar_mixup": ("augmix_cifar_standard", {"mix": "Mixup"}),
    "augmix_cifar_cutmix": ("augmix_cifar_standard", {"mix": "Mixup"}),
    "augmix_cifar_autoaugment": ("augmix_cifar_standard", {"augment.policy": "AutoAugment"}),
    "augmix_cifar_random_autoaugment": ("augmix_cifar_standard", {"augment.policy": "RandomAutoAugment"}),
    "augmix_cifar_random_autoaugment_jsd": ("augmix_cifar", {"augment.policy": "RandomAutoAugment"}),
    "augmix_cifar_no_jsd": ("augmix_cifar", {"augment.policy.views": 1, "task.loss": "CrossEntropy"}),
    "augmix_cifar_adversarial": ("augmix_cifar_standard", {"task": "Adversarial"}),
}


def differences(first, second, path: str = "") -> set[str]:
    """Fields in which two recipes differ; of a choice of another class, the choice alone."""
    if type(first) is not type(second) or not dataclasses.is_dataclass(first):
        return set() if first == second else {path}
    names = [field.name for field in dataclasses.fields(first)]
    return set().union(*(differences(getattr(first, name), getattr(second, name), f"{path}.{name}".strip(".")) for name in names))


@pytest.mark.parametrize("name", TABLE)
def test_resolved_values_are_the_tables_of_all_families(name):
    assert_resolved_as(name, TABLE[name])


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_what_differs(row):
    base, changed = ROWS[row]
    recipe = get_recipe(row)
    assert differences(get_recipe(base), recipe) - {"name"} == set(changed)
    for path, value in changed.items():
        assert value_at(recipe, path) == value


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("cvt", {0: 1e-6, 4: 1e-6 + 4 / 5 * (2e-3 - 1e-6), 300: 1e-5}),
        ("t2t", {0: 1e-6, 10: 4.98657e-4, 300: 1e-5, 309: 1e-5}),
        ("resnet50", {29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001}),
        ("sam_cifar", {59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}),
        ("mixup_cifar", {99: 0.1, 100: 0.01, 150: 0.001}),
        ("deit_384", {0: 5e-6, 29: 5e-6}),
        ("cct", {0: 1e-5, 305: 1e-5}),
    ],
)
def test_learning_rates_at_the_turns(name, rates):
    assert name not in RATES
    recipe = get_recipe(name).resolved(world=8)
    schedule = recipe.schedule.build(recipe.optim.lr, recipe.train.epochs, 7)
    for epoch, rate in rates.items():
        assert schedule(epoch * 7) == pytest.approx(rate, rel=1e-5), epoch


def test_choices_are_recipes_of_their_own():
    sketch = get_recipe("t2t_14_drloc-sketch")
    assert (sketch.name, sketch.data.name, sketch.data.options) == ("t2t_14_drloc-sketch", "domainnet", {"domain": "sketch"})
    assert sketch.data.published().classes == 345
    assert differences(sketch, get_recipe("t2t_14_drloc")) == {"name", "data.name", "data.options"}
    assert "sketch" in describe_recipe("t2t_14_drloc")
    for name in list_recipes():
        for choice in choices_of(name):
            recipe = get_recipe(f"{name}-{choice}")
            assert Recipe.from_json(recipe.json()) == recipe
            assert recipe.data.published() is not None
    with pytest.raises(RecipeError, match="swin_t_drloc is not for 'sketches'; did you mean sketch"):
        get_recipe("swin_t_drloc-sketches")
    with pytest.raises(RecipeError, match="no recipe is called 'deit-sketch'"):
        get_recipe("deit-sketch")


def test_tables_of_augmix_share_its_network():
    for row in ROWS:
        if row.startswith("augmix"):
            assert get_recipe(row).model.name == AUGMIX["model.name"]
