"""Every optimizer by its name against the specification's numbers; RMSProp against timm; torch's fused steps."""

import copy

import pytest
import torch
from optional import peer

from vtkernels.optim import SAM, RMSpropTF, create_optimizer, optimizer_class

GOLDEN = {
    "nesterov": ({"momentum": 0.9, "weight_decay": 0.01}, [-0.0738053322632635, 0.029838898556415357, -0.4825156975984063]),
    "sgdw": ({"momentum": 0.9, "weight_decay": 0.01}, [0.006136299650009397, -0.16352272848815583, -0.2415317879578228]),
    "adam": ({"weight_decay": 0.01}, [0.2052813351965997, -0.7012674830586428, 1.7007948813835023]),
    "adamw": ({"weight_decay": 0.01}, [0.20412747477792026, -0.6985860696266022, 1.6951213099843943]),
    "lamb": ({"weight_decay": 0.01}, [0.14282714902799248, -0.6353954554303538, 1.6313224944553941]),
}


def loss_of(w: torch.Tensor) -> torch.Tensor:
    return w.square().sum() + 0.1 * w.pow(3).sum()


def train(optimizer, w, steps) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(w).backward()
        optimizer.step()


def start(dtype=torch.float64) -> torch.Tensor:
    return torch.tensor([0.5, -1.0, 2.0], dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("name", "fused"), [*((name, None) for name in GOLDEN), ("nesterov", False), ("adam", False), ("adamw", False)])
def test_golden(name, fused):
    options, golden = GOLDEN[name]
    w = start()
    train(create_optimizer(name, [w], lr=0.1, fused=fused, **options), w, 3)
    torch.testing.assert_close(w.detach(), torch.tensor(golden, dtype=torch.float64), rtol=0, atol=1e-12)


def test_sgd_is_torchs_plain_momentum():
    ours, theirs = start(), start()
    train(create_optimizer("sgd", [ours], lr=0.1), ours, 4)
    train(torch.optim.SGD([theirs], lr=0.1, momentum=0.9), theirs, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_decay": True}, {"momentum": 0.0}, {"eps": 1e-8}], ids=str)
def test_rmsprop_is_timms(options):
    options = {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3, **options}
    ours, theirs = start(), start()
    a, b = RMSpropTF([ours], lr=0.02, **options), peer("timm.optim.rmsprop_tf").RMSpropTF([theirs], lr=0.02, **options)
    for lr in (0.02, 0.01, 0.03):
        # the rate is inside the buffer, which shows when it changes
        a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = lr
        train(a, ours, 2)
        train(b, theirs, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_torchs_fused_steps_are_used(name):
    assert create_optimizer(name, [start()], lr=0.1).defaults["fused"] is True
    assert create_optimizer(name, [start()], lr=0.1, foreach=True).defaults["foreach"] is True
    assert create_optimizer(name, [start(torch.complex64)], lr=0.1).defaults["fused"] is False


@pytest.mark.parametrize("name", ["sgd", "nesterov", "sgdw", "adam", "adamw", "lamb", "rmsprop"])
def test_state_continues_to_the_bit(name):
    whole, first = start(torch.float32), start(torch.float32)
    train(create_optimizer(name, [whole], lr=0.05, weight_decay=0.1), whole, 6)
    before = create_optimizer(name, [first], lr=0.05, weight_decay=0.1)
    train(before, first, 3)
    second = first.detach().clone().requires_grad_()
    after = create_optimizer(name, [second], lr=1.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, second, 3)
    assert torch.equal(whole, second)


def test_zero_gradients_shrink_by_the_decay_alone():
    w = start()
    optimizer = create_optimizer("adamw", [w], lr=0.1, weight_decay=0.5)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    torch.testing.assert_close(w.detach(), start().detach() * (1 - 0.1 * 0.5), rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "lamb"])
def test_half_precision_weights_stay_finite(name):
    w = start(torch.bfloat16)
    train(create_optimizer(name, [w], lr=0.05), w, 5)
    assert w.isfinite().all()
    assert loss_of(w) < loss_of(start(torch.bfloat16))


def test_groups_keep_their_own_values():
    a, b, c = start(), start(), start()
    groups = [{"params": iter([a]), "weight_decay": 0.0, "lr_scale": 0.5}, {"params": [b], "lr": 0.3}, {"params": [c]}]
    optimizer = create_optimizer("adamw", groups, lr=0.1, weight_decay=0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.3, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05, 0.05]
    assert "lr" not in groups[0]


def test_sam_takes_the_class():
    kind, options = optimizer_class("nesterov", weight_decay=0.1, fused=None)
    w = start()
    sam = SAM([w], kind, rho=0.05, lr=0.1, **options)
    assert isinstance(sam.base_optimizer, torch.optim.SGD)
    assert sam.param_groups[0]["nesterov"]
    assert sam.param_groups[0]["weight_decay"] == 0.1


def test_misspelt_and_empty():
    with pytest.raises(ValueError, match="name must be one of sgd, nesterov, .*, got 'adamww'; did you mean 'adamw'"):
        create_optimizer("adamww", [start()], lr=0.1)
    with pytest.raises(ValueError, match="params must be parameters or groups of them, got none"):
        create_optimizer("sgd", [], lr=0.1)
    with pytest.raises(ValueError, match="RMSpropTF: momentum must be at least 0 and below 1"):
        create_optimizer("rmsprop", [start()], lr=0.1, momentum=1.0)
