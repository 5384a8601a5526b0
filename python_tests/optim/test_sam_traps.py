"""The thirteen traps that published implementations of SAM fall into; a test is named for each."""

import copy

import pytest
import torch
from sam_problems import Golden, bits, mlp
from torch import nn

import vtkernels as vt


def small_sam(params, base=torch.optim.SGD, **options):
    return vt.optim.SAM(params, base, **({"lr": 0.1, "rho": 0.5} | options))


@pytest.mark.parametrize("way", ["steps", "closure", "block"])
def test_trap_1_a_parameter_without_a_second_gradient_is_restored(way):
    golden = Golden()
    unused = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))
    before = unused.detach().clone()
    sam = small_sam([unused, *golden.params], momentum=0.9)
    (golden.loss() + unused.sum()).backward()
    if way == "steps":
        sam.first_step(zero_grad=True)
        assert not torch.equal(unused, before)
        golden.backward()
        sam.second_step()
    elif way == "closure":
        sam.step(golden.backward)
    else:
        with sam.perturbed():
            golden.backward()
            assert not torch.equal(unused, before)
        sam.step()
    assert bits(unused) == bits(before)
    assert unused not in sam.state and golden.w in sam.state, "no gradient, no base step"


def test_trap_1_a_parameter_with_a_second_gradient_only_is_stepped():
    golden, late = Golden(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    sam = small_sam([late, *golden.params])
    golden.backward()
    sam.step(lambda: (golden.loss() + 2 * late.sum()).backward())
    assert late.tolist() == pytest.approx([0.8, 0.8], abs=1e-15)


def test_trap_2_storage_stays_where_it_is():
    golden = Golden()
    view = golden.w.data.view(-1)[1:3]
    pointers = [param.data_ptr() for param in golden.params]
    sam = small_sam(golden.params)
    for _ in range(3):
        golden.backward()
        sam.first_step(zero_grad=True)
        backups = [backup.data_ptr() for backup in sam._backups.values()]
        assert [param.data_ptr() for param in golden.params] == pointers
        golden.backward()
        sam.second_step(zero_grad=True)
        assert [param.data_ptr() for param in golden.params] == pointers
        assert view.tolist() == golden.w.data.view(-1)[1:3].tolist()
    golden.backward()
    sam.first_step()
    assert [backup.data_ptr() for backup in sam._backups.values()] == backups, "allocated once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_trap_3_restoring_is_exact_where_subtracting_is_not(dtype):
    model = mlp().to(dtype)
    params = list(model.parameters())
    sam = small_sam(params, rho=0.3)
    model(torch.randn(4, 6).to(dtype)).square().sum().backward()
    before, grads = [bits(param) for param in params], [param.grad.clone() for param in params]
    with torch.no_grad():
        norm = torch.cat([grad.flatten() for grad in grads]).float().norm()
        steps = [(0.3 * grad / norm).to(dtype) for grad in grads]
        assert any(bits((param + step) - step) != old for param, step, old in zip(params, steps, before, strict=True))
    sam.first_step()
    assert [bits(param) for param in params] != before
    sam.restore()
    assert [bits(param) for param in params] == before
    sam.restore()
    assert [bits(param) for param in params] == before


def test_trap_4_the_perturbation_does_not_see_the_scale():
    """Without the 1e-12 beside the norm, 65536 changes no bit; 1000 is no power of two, so that sums round differently."""
    ends = {}
    for scale in (1.0, 1000.0, 65536.0):
        golden = Golden()
        sam = small_sam(golden.params, rho=0.05, perturb_eps=0.0)
        (scale * golden.loss()).backward()
        sam.first_step(zero_grad=True)
        ends[scale] = golden.values()
    assert ends[1000.0] == pytest.approx(ends[1.0], rel=0, abs=1e-15)
    assert ends[65536.0] == ends[1.0]


def test_trap_4_the_norm_of_scaled_half_gradients_does_not_overflow():
    weight = nn.Parameter(torch.zeros(512, dtype=torch.float16))
    weight.grad = torch.full_like(weight, 60000.0)
    sam = small_sam([weight], rho=1.0)
    sam.first_step()
    assert sam.norm.item() == pytest.approx(60000.0 * 512**0.5, rel=1e-3)
    assert weight.tolist() == pytest.approx([512**-0.5] * 512, rel=1e-3)


def test_trap_5_one_autocast_context_around_both_passes():
    """Cast weights are cached until the outermost autocast ends; the second pass must not see those of the first."""
    model = mlp()
    x = torch.randn(4, 6)

    def loss():
        return model(x).float().square().mean()

    sam = small_sam(model.parameters(), rho=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        first = loss()
        first.backward()
        sam.first_step(zero_grad=True)
        inside = loss()
        inside.backward()
        weights = copy.deepcopy(model.state_dict())
        sam.second_step(zero_grad=True)
        after = loss().detach()
    other = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(loss(), after), "nor those of the second pass after the step"
        other.load_state_dict(weights)
        model = other
        assert torch.equal(loss(), inside.detach())
    assert (inside - first).abs() > 0.1 * first


def test_trap_6_float32_masters_move_where_half_weights_cannot():
    gradient = torch.randn(200_000)
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.ones(200_000, dtype=dtype))
        weight.grad = gradient.to(dtype)
        sam = small_sam([weight], rho=0.05)
        sam.first_step()
        exact = 1 + 0.05 * weight.grad.double() / weight.grad.double().norm()
        # rounded once, from float32 arithmetic
        assert torch.equal(weight.detach(), exact.to(dtype)) or dtype == torch.float32
        moved[dtype] = (weight != 1).float().mean().item()
    assert moved[torch.float32] > 0.95 and moved[torch.bfloat16] == 0.0


def test_trap_7_running_statistics_are_those_of_the_first_pass():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    plain = copy.deepcopy(model)
    x = torch.randn(16, 6)
    sam = small_sam(model.parameters(), rho=1.0, model=model, lr=0.0)
    for _ in range(3):
        plain(x)
        model(x).square().sum().backward()
        sam.step(lambda: model(x).square().sum().backward())
        sam.zero_grad()
        for name, buffer in plain.named_buffers():
            assert bits(model.get_buffer(name)) == bits(buffer), name
    assert model[1].num_batches_tracked == 3


def test_trap_8_both_passes_draw_the_same_masks_if_asked():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5))
    masks = []
    model.register_forward_hook(lambda module, args, out: masks.append(bits(out == 0)))
    x = torch.randn(4, 6)
    for same in (True, False):
        sam = small_sam(model.parameters(), rho=0.01, model=model, same_rng=same)
        masks.clear()
        for _ in range(2):
            model(x).sum().backward()
            sam.step(lambda: model(x).sum().backward())
            sam.zero_grad()
        sam.close()
        assert (masks[0] == masks[1]) == (masks[2] == masks[3]) == same
        assert masks[0] != masks[2], "another step draws others"


def test_trap_9_the_second_gradient_is_clipped_and_the_first_need_not_be():
    ends = []
    for clip_first in (False, True):
        golden = Golden()
        sam = small_sam(golden.params, rho=0.05)
        golden.backward()
        if clip_first:
            nn.utils.clip_grad_norm_(golden.params, 1e-3)
        start = torch.tensor(golden.values(), dtype=torch.float64)
        with sam.perturbed():
            golden.backward()
        nn.utils.clip_grad_norm_(golden.params, 0.25)
        sam.step()
        ends.append(torch.tensor(golden.values(), dtype=torch.float64))
        assert (ends[-1] - start).norm().item() == pytest.approx(0.1 * 0.25, rel=1e-5)
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_trap_10_weight_decay_is_the_base_optimizers_alone(base):
    """It is absent from the perturbation, and acts on the restored weights."""
    perturbed, ends = [], []
    for decay in (0.0, 0.1):
        golden = Golden()
        start = golden.values()
        sam = small_sam(golden.params, base, lr=0.01, rho=0.5, weight_decay=decay)
        golden.backward()
        with sam.perturbed():
            golden.backward()
            perturbed.append(golden.values())
        sam.step()
        ends.append(golden.values())
    assert perturbed[0] == perturbed[1]
    pulled = [a - 0.01 * 0.1 * w for a, w in zip(ends[0], start, strict=True)]
    # Adam scales the gradient, not the decay, and its first step has the size of the learning rate whatever the gradient
    assert ends[1] == pytest.approx(pulled, abs=1e-15 if base is torch.optim.SGD else 1e-9)


def test_trap_11_groups_and_state_are_the_base_optimizers_after_loading_too():
    golden = Golden()
    sam = small_sam(golden.params, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(sam, step_size=1, gamma=0.1)
    golden.backward()
    sam.step(golden.backward)
    sam.load_state_dict(copy.deepcopy(sam.state_dict()))
    assert sam.param_groups is sam.base_optimizer.param_groups and sam.state is sam.base_optimizer.state
    scheduler.step()
    assert sam.base_optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    sam.base_optimizer.load_state_dict(copy.deepcopy(sam.base_optimizer.state_dict()))
    assert sam.param_groups is sam.base_optimizer.param_groups and sam.state is sam.base_optimizer.state
    start = golden.values()
    sam.param_groups[0]["lr"] = 0.0
    sam.param_groups[0]["weight_decay"] = 0.0
    sam.zero_grad()
    golden.backward()
    sam.step(golden.backward)
    assert golden.values() == start


def test_trap_12_a_zero_gradient_moves_nothing_and_no_gradient_is_an_error():
    golden = Golden()
    start = golden.values()
    sam = small_sam(golden.params)
    (0.0 * golden.loss()).backward()
    sam.first_step()
    assert golden.values() == start and sam.norm.item() == 0.0
    sam.restore()
    sam.zero_grad()
    with pytest.raises(RuntimeError, match=r"first_step found no parameter with a gradient; call loss.backward\(\) first"):
        sam.first_step()


def test_trap_13_the_first_loss_is_that_of_the_weights():
    golden = Golden()
    sam = small_sam(golden.params, rho=0.05)
    clean = golden.loss().item()
    reported = golden.backward().item()
    perturbed = sam.step(golden.backward).item()
    assert reported == clean == pytest.approx(1.267449358209284, abs=1e-12)
    assert perturbed == pytest.approx(1.4301193370235155, abs=1e-12)
