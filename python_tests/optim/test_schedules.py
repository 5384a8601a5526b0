"""Learning rates against the specification's table, timm's schedulers and torch's."""

import math
from dataclasses import replace

import pytest
import torch
from optional import peer

from vtkernels.optim import linear_scaled, set_lr
from vtkernels.optim.schedules import (
    Constant,
    Cosine,
    InEpochs,
    Linear,
    MultiStep,
    Noisy,
    Plateau,
    Step,
    augmix_cosine,
    exponential,
    thirds,
    vit_cosine,
    vit_linear,
)

BASE = {"lr": 1e-3, "final_lr": 1e-5}
DEIT = Cosine(**BASE, length=300, warmup=5, warmup_lr=1e-6)
SWIN = Cosine(**BASE, length=280, warmup=20, warmup_prefix=True)
DRLOC = Cosine(**BASE, length=300, warmup=20)
RESTARTS = Cosine(**BASE, length=10, cycle_mul=2, cycle_decay=0.5, cycles=3)


@pytest.mark.parametrize(
    ("schedule", "golden"),
    [
        (
            DEIT,
            {
                0: 1e-6,
                1: 2.008e-4,
                4: 8.002e-4,
                5: 9.99321619703514e-4,
                150: 5.05e-4,
                299: 1.002714116407149e-5,
                300: 1e-5,
                10**6: 1e-5,
            },
        ),
        (SWIN, {20: 1e-3, 21: 9.999688430935769e-4, 160: 5.05e-4, 299: 1.0031156906423219e-5}),
        (replace(DRLOC, warmup_lr=1e-6), {19: 9.5005e-4, 20: 9.891830623632338e-4, 100: 7.525e-4}),
        (RESTARTS, {0: 1e-3, 9: 3.4227024433899e-5, 10: 5e-4, 30: 2.5e-4, 69: 1.0369919952e-5, 70: 1e-5}),
    ],
    ids=["deit", "swin", "drloc", "restarts"],
)
def test_golden(schedule, golden):
    for t, lr in golden.items():
        # the table has 10 digits or more
        assert schedule(t) == pytest.approx(lr, rel=1e-10), t


def timms(kind: str, lr: float, **options):
    """t -> learning rate of timm's scheduler."""
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=lr)
    scheduler = getattr(peer("timm.scheduler"), kind)(optimizer, **options)

    def at(t: int) -> float:
        scheduler.step(t)
        return optimizer.param_groups[0]["lr"]

    return at


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("options", [{}, {"cycle_mul": 1.5, "cycle_decay": 0.7, "cycle_limit": 3}, {"cycle_limit": 2}, {"k_decay": 1.7}], ids=str)
def test_cosine_is_timms(options, prefix):
    theirs = timms("CosineLRScheduler", 0.3, t_initial=20, lr_min=1e-3, warmup_t=7, warmup_lr_init=0.01, warmup_prefix=prefix, **options)
    names = {"cycle_limit": "cycles", "k_decay": "k"}
    ours = {names.get(name, name): value for name, value in options.items()}
    schedule = Cosine(lr=0.3, length=20, final_lr=1e-3, warmup=7, warmup_lr=0.01, warmup_prefix=prefix, **ours)
    for t in range(110):
        assert schedule(t) == pytest.approx(theirs(t), rel=1e-12)


def test_linear_is_timms_polynomial_of_power_one():
    theirs = timms("PolyLRScheduler", 0.3, t_initial=20, power=1, lr_min=1e-3, warmup_t=7, warmup_prefix=True, k_decay=1.5)
    schedule = Linear(lr=0.3, length=20, final_lr=1e-3, warmup=7, warmup_prefix=True, k=1.5)
    for t in range(40):
        assert schedule(t) == pytest.approx(theirs(t), rel=1e-12)


@pytest.mark.parametrize("prefix", [False, True])
def test_steps_are_timms(prefix):
    warm = {"warmup_t": 3, "warmup_prefix": prefix}
    ours = {"lr": 0.3, "warmup": 3, "warmup_prefix": prefix}
    step, timms_step = Step(**ours, every=4, factor=0.5), timms("StepLRScheduler", 0.3, decay_t=4, decay_rate=0.5, **warm)
    multi = timms("MultiStepLRScheduler", 0.3, decay_t=[5, 9], decay_rate=0.1, **warm)
    early = MultiStep(**ours, milestones=(5, 9), early=True)
    for t in range(20):
        assert step(t) == pytest.approx(timms_step(t), rel=1e-12)
        assert early(t) == pytest.approx(multi(t), rel=1e-12)


def test_multistep_is_torchs_and_timm_is_one_early():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    theirs, ours = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60]), MultiStep(lr=0.1, milestones=(30, 60))
    for t in range(70):
        assert ours(t) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        theirs.step()
    assert ours(29) == 0.1
    assert replace(ours, early=True)(29) == pytest.approx(0.01)


def test_fractions_of_the_epochs():
    """The example of davda54/sam: times 0.2 at 30, 60 and 80 % of 200 epochs."""
    schedule = MultiStep(lr=0.1, milestones=tuple(fraction * 200 for fraction in (0.3, 0.6, 0.8)), factor=0.2)
    expected = {59: 0.1, 60: 0.02, 119: 0.02, 120: 4e-3, 159: 4e-3, 160: 8e-4}
    assert {t: schedule(t) for t in expected} == pytest.approx(expected)


def test_thirds():
    schedule = thirds(lr=0.3, length=91)
    assert [schedule(t) for t in (0, 29, 30, 59, 60, 90)] == pytest.approx([0.3, 0.3, 0.03, 0.03, 0.003, 0.003])
    with pytest.raises(ValueError, match="thirds: length // 3 must be positive, got 0"):
        thirds(lr=0.1, length=2)


@pytest.mark.parametrize("t", [0, 1, 7, 50, 99, 100])
def test_augmix_cosine(t):
    floor = 1e-6 / 0.1
    assert augmix_cosine(lr=0.1, length=100)(t) == pytest.approx(0.1 * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t / 100))))


@pytest.mark.parametrize("update", [1, 2, 9, 10, 11, 55, 99, 100, 130])
def test_vit_schedules(update):
    """The formula of the JAX code, which counts updates from 1."""
    progress = min(max((update - 10) / (100 - 10), 0.0), 1.0)
    rise = min(1.0, update / 10)
    assert vit_cosine(lr=0.03, total=100, warmup=10)(update - 1) == pytest.approx(0.03 * 0.5 * (1 + math.cos(math.pi * progress)) * rise, abs=1e-12)
    assert vit_linear(lr=0.03, total=100, warmup=10)(update - 1) == pytest.approx((1e-5 + (0.03 - 1e-5) * (1 - progress)) * rise)


def test_exponential_counts_every_quotient():
    schedule = exponential(lr=1.0, warmup=5)
    for step in range(3, 200):
        # in floating point 2.4 * step / 2.4 is not always step
        assert schedule(2.4 * step) == pytest.approx(0.97**step)
        assert schedule(2.4 * step - 1e-3) == pytest.approx(0.97 ** (step - 1))
    smooth = replace(schedule, smooth=True)
    assert smooth(6.0) == pytest.approx(0.97**2.5)


@pytest.mark.parametrize("schedule", [SWIN, replace(SWIN, warmup=7.5), vit_linear(lr=1.0, total=50, warmup=9), Constant(lr=0.1, warmup=9)], ids=repr)
def test_warmup_grows_and_a_prefix_goes_on_without_a_jump(schedule):
    rates = [schedule(t) for t in range(math.floor(schedule.warmup - schedule.first) + 1)]
    assert rates == sorted(rates)
    edge = schedule.warmup - schedule.first
    assert schedule(edge - 1e-9) == pytest.approx(schedule(edge), rel=1e-6) == pytest.approx(schedule.lr)


def test_without_a_prefix_the_rate_jumps_down():
    assert DEIT(5) < DEIT.lr
    assert DEIT(5 - 1e-9) == pytest.approx(DEIT.lr)


def test_in_epochs():
    per_epoch = InEpochs(schedule=DEIT, updates_per_epoch=10)
    assert [per_epoch(t) for t in (0, 9, 10, 59)] == [DEIT(0), DEIT(0), DEIT(1), DEIT(5)]
    each = replace(per_epoch, each_update=True)
    assert [each(t) for t in (0, 9, 10, 59)] == [DEIT(0), DEIT(0.9), DEIT(1), DEIT(5.9)]
    # the curve in epochs, asked at updates, is the curve in updates
    in_updates = Cosine(**BASE, length=3000, warmup=50, warmup_lr=1e-6)
    assert [each(t) for t in range(0, 3100, 37)] == pytest.approx([in_updates(t) for t in range(0, 3100, 37)])
    lagging = replace(per_epoch, lag=1)
    assert [lagging(t) for t in (0, 10, 20, 30)] == [1e-6, 1e-6, DEIT(1), DEIT(2)]


def test_noise_is_timms():
    theirs = timms("CosineLRScheduler", 0.3, t_initial=40, noise_range_t=(5, 30), noise_pct=0.4, noise_seed=7)
    schedule = Noisy(schedule=Cosine(lr=0.3, length=40), start=5, end=30, limit=0.4, seed=7)
    for t in range(45):
        assert schedule(t) == pytest.approx(theirs(t), rel=1e-12)
    assert schedule(4) == schedule.schedule(4)
    assert schedule(5) == schedule(5) != schedule.schedule(5)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_plateau_is_torchs(mode, cooldown):
    generator = torch.Generator().manual_seed(1)
    metrics = [*torch.rand(60, generator=generator).tolist(), float("nan"), 0.9, 0.9, -0.5, *torch.rand(40, generator=generator).tolist()]
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    options = {"factor": 0.3, "patience": 3, "cooldown": cooldown, "mode": mode}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=1e-4, **options)
    ours = Plateau(lr=0.1, final_lr=1e-4, **options)
    for t, metric in enumerate(metrics):
        if t == 20:
            resumed = Plateau(lr=0.1, final_lr=1e-4, **options)
            resumed.load_state_dict(ours.state_dict())
            ours = resumed
        theirs.step(metric)
        ours.observe(metric, t)
        assert ours(t) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert ours(1000) == 1e-4


def test_plateau_warms_up_first():
    schedule = InEpochs(schedule=Plateau(lr=0.1, patience=0, warmup=2), updates_per_epoch=4, each_update=True)
    assert schedule(4) == 0.05
    for epoch in (1, 2):
        schedule.observe(0.5, 4 * epoch)
    assert schedule(8) == 0.1
    schedule.observe(0.5, 12)
    assert schedule(12) == 0.1
    schedule.observe(0.5, 16)
    assert schedule(16) == pytest.approx(0.01)
    assert schedule.scaled(2.0)(16) == pytest.approx(0.02)
    assert schedule(16) == pytest.approx(0.01)


def test_scaled_rates():
    assert linear_scaled(5e-4, 1024) == 1e-3
    for t in (0, 3, 20, 200, 400):
        assert DEIT.scaled(4.0)(t) == pytest.approx(4 * DEIT(t))
    assert InEpochs(schedule=DEIT, updates_per_epoch=3).scaled(2.0)(6) == pytest.approx(2 * DEIT(2))
    assert Step(lr=0.1, every=2).scaled(2.0)(3) == pytest.approx(0.02)


def test_set_lr_scales_once_and_keeps_tensors():
    weights = [torch.ones(1, requires_grad=True) for _ in range(3)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr_scale": 0.5}, {"params": weights[1:2]}], lr=1.0)
    optimizer.add_param_group({"params": weights[2:], "lr": torch.tensor(1.0), "lr_scale": 0.1})
    held = optimizer.param_groups[2]["lr"]
    for _ in range(2):
        set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups[:2]] == [0.1, 0.2]
    assert optimizer.param_groups[2]["lr"] is held
    assert held.item() == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(lr=-1, length=3), "Cosine: lr must be at least 0 and finite, got -1"),
        (lambda: Cosine(lr=float("nan"), length=3), "Cosine: lr must be at least 0"),
        (lambda: Cosine(lr=1, length=0), "Cosine: length must be positive, got 0; with warmup_prefix"),
        (lambda: vit_cosine(lr=1, total=5, warmup=9), "Cosine: length must be positive, got -4"),
        (lambda: MultiStep(lr=1, milestones=(3, 1)), r"MultiStep: milestones must grow, got \(3, 1\); try \(1, 3\)"),
        (lambda: Step(lr=1, every=0), "Step: every must be positive"),
        (lambda: Plateau(lr=1, mode="maximum"), "Plateau: mode must be"),
        (lambda: Plateau(lr=1, factor=1.5), "Plateau: factor must be between 0 and 1"),
        (lambda: InEpochs(schedule=DEIT, updates_per_epoch=0), "InEpochs: updates_per_epoch must be positive"),
        (lambda: DEIT(-1), "Cosine: t must be at least 0"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
