"""LookSAM and friendly SAM: formulas on one flat vector, what they remember, and scales that change."""

import pytest
import torch
from sam_problems import bits
from variants_literal import SGD, Momentum, Task, assert_close, every_way, train

from vtkernels.optim import SAM, FriendlySAM, LookSAM, vectors


@pytest.mark.parametrize("way", every_way)
@pytest.mark.parametrize("k", [1, 3])
def test_looksam_formula(k, way):
    task = Task()
    w, base = task.flat(), Momentum()
    for t in range(8):
        g = task.gradient(w, t)
        if t % k == 0:
            step = task.gradient(w + 0.1 * g / (g.norm() + 1e-12), t)
            cosine = (step @ g) / (step.norm() * g.norm())
            v = step - step.norm() * cosine * g / g.norm()
        else:
            step = g + 0.7 * g.norm() / (v.norm() + 1e-12) * v
        w = base.step(w, step)
    train(LookSAM(task.params, k=k, **SGD), task, range(8), way)
    assert_close(task, w)


def test_looksam_runs_a_second_pass_in_each_kth_step():
    task, calls = Task(), []
    looksam = LookSAM(task.params, **SGD)
    assert (looksam.param_groups[0]["rho"], looksam.every, looksam.alpha) == (0.1, 5, 0.7)
    for t in range(11):
        looksam.zero_grad()
        task.loss(t).backward()
        looksam.step(lambda t=t: (calls.append(t), task.loss(t).backward()))
    assert calls == [0, 5, 10]


def test_what_looksam_remembers_is_across_the_gradient():
    task = Task()
    looksam = LookSAM(task.params, rho=1.0, **SGD)
    task.loss(0).backward()
    g = torch.cat([param.grad.flatten() for param in task.params])
    with looksam.perturbed():
        task.loss(0).backward()
    v = torch.cat([looksam.state_dict()["look_sam"][i].flatten() for i in range(len(task.params))])
    assert v.norm() > 0.01 * g.norm()
    assert abs(v @ g) < 1e-13 * g.norm() ** 2


def test_looksam_without_a_first_direction_steps_plainly():
    """The second pass of step 0 overflowed: nothing is remembered, and the steps until the next one are those of the base."""
    task, plain = Task(torch.float32), Task(torch.float32)
    looksam, base = LookSAM(task.params, k=3, **SGD), torch.optim.SGD(plain.params, lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(task.loss(0)).backward()
    with looksam.perturbed():
        scaler.scale(task.loss(0)).backward()
        task.params[0].grad.fill_(float("inf"))
    scaler.step(looksam)
    scaler.update()
    train(looksam, task, range(1, 3), scaler=scaler)
    for t in (1, 2):
        base.zero_grad()
        plain.loss(t).backward()
        base.step()
    torch.testing.assert_close(task.flat(), plain.flat(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [LookSAM, FriendlySAM])
def test_a_scale_that_changes_from_step_to_step(kind):
    plain, scaled = Task(torch.float32), Task(torch.float32)
    train(kind(plain.params, **SGD), plain, range(7))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    options = {"scaler": scaler} if kind is FriendlySAM else {}
    train(kind(scaled.params, **options, **SGD), scaled, range(7), scaler=scaler, on_step=lambda t: t and scaler.update(4.0 ** (t % 3)))
    torch.testing.assert_close(scaled.flat(), plain.flat(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", every_way)
@pytest.mark.parametrize(("sigma", "lmbda"), [(1.0, 0.9), (0.5, 0.6)])
def test_friendly_formula(sigma, lmbda, way):
    task = Task()
    w, base, m = task.flat(), Momentum(), None
    for t in range(6):
        g = task.gradient(w, t)
        d, m = (g, g) if m is None else (g - sigma * m, lmbda * m + (1 - lmbda) * g)
        w = base.step(w, task.gradient(w + 0.2 * d / (d.norm() + 1e-12), t))
    friendly = FriendlySAM(task.params, sigma=sigma, lmbda=lmbda, **SGD)
    train(friendly, task, range(6), way)
    assert_close(task, w)
    remembered = torch.cat([friendly.state_dict()["friendly_sam"][i].flatten() for i in range(len(task.params))])
    torch.testing.assert_close(remembered, m, rtol=1e-10, atol=1e-12)


def test_friendly_defaults_and_first_step():
    tasks = [Task(torch.float32), Task(torch.float32)]
    friendly = FriendlySAM(tasks[0].params, **SGD)
    assert (friendly.param_groups[0]["rho"], friendly.sigma, friendly.lmbda) == (0.2, 1.0, 0.9)
    train(friendly, tasks[0], range(1))
    train(SAM(tasks[1].params, rho=0.2, **SGD), tasks[1], range(1))
    assert bits(tasks[0].flat()) == bits(tasks[1].flat())


def test_friendly_without_sigma_is_sam():
    tasks = [Task(torch.float32), Task(torch.float32)]
    train(FriendlySAM(tasks[0].params, sigma=0.0, **SGD), tasks[0], range(4))
    train(SAM(tasks[1].params, rho=0.2, **SGD), tasks[1], range(4))
    assert bits(tasks[0].flat()) == bits(tasks[1].flat())


def test_friendly_begins_after_the_first_call_that_was_finite():
    """Scalers begin too high: calls that overflow count for nothing."""
    late, early = Task(torch.float32), Task(torch.float32)
    friendly = FriendlySAM(late.params, **SGD)
    for _ in range(2):
        friendly.zero_grad()
        late.loss(7).backward()
        late.params[1].grad[0] = float("inf")
        with friendly.perturbed():
            late.loss(7).backward()
        friendly.step()
    train(friendly, late, range(4))
    train(FriendlySAM(early.params, **SGD), early, range(4))
    assert bits(late.flat()) == bits(early.flat())


def test_friendly_restores_if_its_mean_cannot_be_updated(monkeypatch):
    task = Task(torch.float32)
    friendly, before = FriendlySAM(task.params, **SGD), bits(task.flat())
    task.loss(0).backward()
    monkeypatch.setattr(vectors, "blend_", lambda *args: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        friendly.first_step()
    assert bits(task.flat()) == before


@pytest.mark.parametrize("dtypes", [[torch.float32] * 3, [torch.float64, torch.float32, torch.bfloat16]], ids=["one dtype", "mixed"])
def test_vectors(dtypes):
    shapes = [(3, 4), (0,), (300,)]
    xs, ys = ([torch.randn(shape, dtype=torch.float64).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)] for _ in range(2))
    tolerance = 1e-2 if torch.bfloat16 in dtypes else 1e-6
    double_xs, double_ys = ([tensor.double() for tensor in vector] for vector in (xs, ys))
    both = vectors.products(xs, xs, ys, "auto")
    expected = [sum((a * b).sum() for a, b in pairs) for pairs in (zip(u, v, strict=True) for u, v in ((double_xs, double_ys), (double_xs, double_xs)))]
    assert both.xy.item() == pytest.approx(expected[0].item(), abs=tolerance * expected[1].item())
    assert both.xx.item() == pytest.approx(expected[1].item(), rel=1e-6)
    same = vectors.products(xs, xs, xs, "auto")
    assert same.xy == same.xx == same.yy
    factor = torch.tensor(0.5, dtype=torch.float64)
    for ours, x, y in zip(vectors.plus(xs, ys, factor), xs, ys, strict=True):
        torch.testing.assert_close(ours, x + 0.5 * y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_blending_with_weight_one_is_copying(dtype, found):
    old, new = torch.randn(500).to(dtype), torch.randn(500).to(dtype)
    blended, half = [old.clone(), old.clone()], torch.tensor(2.0)
    if found:
        new[3] = float("nan")
    vectors.blend_(blended[:1], [new], [1.0], torch.tensor(found), None, "auto")
    vectors.blend_(blended[1:], [new], [0.25], torch.tensor(found), half, "auto")
    expected = [old, old] if found else [new, (0.75 * old.double() + 0.125 * new.double()).to(dtype)]
    assert torch.equal(blended[0], expected[0])
    torch.testing.assert_close(blended[1], expected[1])
