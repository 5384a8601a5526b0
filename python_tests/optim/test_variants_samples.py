"""ESAM, which chooses tensors and samples, and m-sharpness, which perturbs for each chunk of a batch."""

import pytest
import torch
from sam_problems import bits
from variants_literal import SGD, Momentum, Task, assert_close, train

from vtkernels.optim import ESAM, GSAM, SAM, LookSAM, m_sharpness_passes

# ---- ESAM --------------------------------------------------------------------------------------------------------------


def losses_of(task: Task, t: int):
    return lambda chosen: task.losses(t, chosen)


def test_esam_with_everything_is_sam_to_the_bit():
    tasks = [Task(torch.float32), Task(torch.float32)]
    esam = ESAM(tasks[0].params, perturb_eps=1e-12, **SGD)
    state = torch.get_rng_state()
    for t in range(4):
        loss = esam.step(losses_of(tasks[0], t))
        assert not loss.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    train(SAM(tasks[1].params, **SGD), tasks[1], range(4))
    assert bits(tasks[0].flat()) == bits(tasks[1].flat())


def test_esam_formula():
    task = Task()
    beta, gamma, rho = 0.5, 0.6, 0.3
    esam = ESAM(task.params, rho=rho, beta=beta, gamma=gamma, **SGD)
    frozen_in = [[1], [], [0, 3], [0, 1, 2], [2]]
    w, base = task.flat(), Momentum()
    for t, frozen in enumerate(frozen_in):
        climbs = torch.cat([torch.full((param.numel(),), float(i not in frozen), dtype=torch.float64) for i, param in enumerate(task.params)])
        g = task.gradient(w, t) * climbs
        moved = w + rho / (g.norm() + 1e-7) / beta * g
        before = task.losses_at(w, t)
        rise = task.losses_at(moved, t) - before
        chosen = rise > rise.sort(descending=True).values[int(gamma * 8) - 1]
        assert chosen.sum() == 3
        w = base.step(w, task.gradient(moved, t, chosen))
        esam._draw = lambda frozen=frozen: [task.params[i] for i in frozen]
        loss = esam.step(losses_of(task, t))
        assert loss.item() == pytest.approx(before.mean().item(), rel=1e-12)
        assert_close(task, w)


def rising(slopes: list[float], gamma: float) -> tuple[list[int] | None, float]:
    """Samples whose losses rise by these slopes: which are chosen, and the gradient of pass two."""
    w, slopes = torch.zeros(1, requires_grad=True), torch.tensor(slopes)
    esam, asked = ESAM([w], torch.optim.SGD, rho=1.0, gamma=gamma, lr=1.0), []

    def losses(chosen):
        asked.append(chosen)
        return w * (slopes if chosen is None else slopes[chosen])

    esam.both_passes(losses)
    forwards = 2 if gamma >= 0.99 or len(slopes) < 2 else 3
    assert len(asked) == forwards
    return asked[-1] if asked[-1] is None else sorted(asked[-1].tolist()), w.grad.item()


def test_esam_selects_strictly_above_the_last_place():
    slopes = [3.0, 9.0, 1.0, 7.0, 5.0, 2.0, 8.0, 4.0, 6.0, 0.5]
    assert rising(slopes, 0.5) == ([1, 3, 6, 8], pytest.approx(7.5))
    assert rising(slopes, 0.59) == ([1, 3, 6, 8], pytest.approx(7.5))
    assert rising(slopes, 0.2) == ([1], pytest.approx(9.0))
    assert rising(slopes, 0.99) == (None, pytest.approx(4.55))


def test_esam_ties_have_no_weight():
    # the 5th largest is 5; two more 5s stand above it in the order, and strictly above are 9 and 8
    assert rising([5.0, 9.0, 5.0, 8.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0.5)[1] == pytest.approx(8.5)
    # nothing is above: what is left is weighted alike
    assert rising([2.0] * 6, 0.5)[1] == pytest.approx(2.0)
    assert rising([4.0, 1.0], 0.1)[1] == pytest.approx(4.0)
    assert rising([4.0], 0.1) == (None, pytest.approx(4.0))


def test_esam_draws_each_tensor_with_its_probability():
    params = [torch.ones(1, requires_grad=True) for _ in range(50)] + [torch.ones(1)]
    esam = ESAM(params, torch.optim.SGD, beta=0.7, lr=0.1)
    drawn = [esam._draw() for _ in range(60)]
    share = sum(map(len, drawn)) / (60 * 50)
    # three standard deviations of 3000 draws
    assert abs(share - 0.3) < 3 * (0.3 * 0.7 / 3000) ** 0.5
    assert all(param.requires_grad for param in drawn[0])
    one = ESAM([torch.ones(1, requires_grad=True)], torch.optim.SGD, beta=1e-9, lr=0.1)
    assert one._draw() == []


def test_esam_frozen_tensors_have_no_gradient_in_pass_one_only():
    task = Task(torch.float32)
    frozen_by_user = task.params[3].requires_grad_(False)
    esam, wanted = ESAM(task.params, beta=0.5, gamma=0.5, **SGD), []
    esam._draw = lambda: [task.params[0], task.params[1]]
    before = task.flat()

    def losses(chosen):
        wanted.append([param.requires_grad for param in task.params])
        return task.losses(0, chosen)

    esam.both_passes(losses)
    assert wanted == [[False, False, True, False], [True, True, True, False], [True, True, True, False]]
    assert all((param.grad is not None) == param.requires_grad for param in task.params)
    assert torch.equal(task.flat(), before)
    assert not frozen_by_user.requires_grad


@pytest.mark.parametrize("failing", [1, 2, 3], ids=["pass one", "between", "pass two"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_esam_leaves_nothing_behind_after_an_error(failing, in_backward):
    task, calls = Task(torch.float32), []
    esam, before = ESAM(task.params, beta=0.5, gamma=0.5, **SGD), bits(task.flat())
    esam._draw = lambda: task.params[:2]

    def losses(chosen):
        calls.append(chosen)
        if len(calls) == failing and not in_backward:
            raise KeyError
        return task.losses(0, chosen)

    def backward(loss):
        if len(calls) >= failing:
            raise KeyError
        loss.backward()

    with pytest.raises(KeyError):
        esam.both_passes(losses, backward if in_backward else torch.Tensor.backward)
    assert all(param.requires_grad for param in task.params)
    assert bits(task.flat()) == before
    with pytest.raises(RuntimeError, match="needs a closure"):
        esam.step()


def test_esam_under_a_scaler():
    plain, scaled = Task(torch.float32), Task(torch.float32)
    options = {"beta": 0.6, "gamma": 0.5, **SGD}
    one, two = ESAM(plain.params, **options), ESAM(scaled.params, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(5):
        torch.manual_seed(t)
        one.step(losses_of(plain, t))
        torch.manual_seed(t)
        two.both_passes(losses_of(scaled, t), lambda loss: scaler.scale(loss).backward())
        scaler.step(two)
        scaler.update()
    # eps is not scaled
    torch.testing.assert_close(scaled.flat(), plain.flat(), rtol=1e-5, atol=1e-6)
    two.both_passes(losses_of(scaled, 0), lambda loss: scaler.scale(loss).backward())
    with pytest.raises(RuntimeError, match="GradScaler.step must come without a closure"):
        scaler.step(two, losses_of(scaled, 0))


def test_esam_in_every_second_step():
    task, calls = Task(), []
    esam = ESAM(task.params, beta=0.5, every=2, rho=0.1, **SGD)
    w, base = task.flat(), Momentum()
    for t in range(4):
        esam._draw = lambda: task.params[:1]
        esam.step(lambda chosen, t=t: (calls.append(t), task.losses(t, chosen))[1])
        g = task.gradient(w, t)
        if t % 2 == 0:
            climbing = g.clone()
            climbing[: task.params[0].numel()] = 0
            g = task.gradient(w + 0.2 * climbing / (climbing.norm() + 1e-7), t)
        w = base.step(w, g)
    assert calls == [0, 0, 1, 2, 2, 3]
    assert_close(task, w)


def test_esam_wants_the_loss_of_each_sample():
    task = Task(torch.float32)
    with pytest.raises(ValueError, match="return the loss of each sample, a tensor of one dimension, got ..; try reduction"):
        ESAM(task.params, **SGD).step(lambda chosen: task.losses(0, chosen).mean())


# ---- m-sharpness -------------------------------------------------------------------------------------------------------


def closures_of(task: Task, t: int, m: int) -> list:
    def closure(rows):
        loss = task.losses(t, rows).mean()
        loss.backward()
        return loss.item()

    return [lambda rows=slice(i, i + m): closure(rows) for i in range(0, 8, m)]


@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_m_sharpness_is_the_mean_over_replicas(m):
    task = Task()
    w, base = task.flat(), Momentum()
    sam = SAM(task.params, rho=0.3, **SGD)
    for t in range(3):
        each = []
        for i in range(0, 8, m):
            g = task.gradient(w, t, slice(i, i + m))
            each.append(task.gradient(w + 0.3 * g / (g.norm() + 1e-12), t, slice(i, i + m)))
        mean_loss = task.loss(t).item()
        w = base.step(w, sum(each) / len(each))
        results = m_sharpness_passes(sam, closures_of(task, t, m))
        assert sum(results) / len(results) == pytest.approx(mean_loss, rel=1e-12)
        sam.step()
        assert_close(task, w)


def test_one_chunk_is_sam_to_the_bit():
    tasks = [Task(torch.float32), Task(torch.float32)]
    for_chunks, plain = SAM(tasks[0].params, **SGD), SAM(tasks[1].params, **SGD)
    for t in range(3):
        m_sharpness_passes(for_chunks, closures_of(tasks[0], t, 8))
        for_chunks.step()
    train(plain, tasks[1], range(3))
    assert bits(tasks[0].flat()) == bits(tasks[1].flat())


def test_m_sharpness_of_gsam():
    task = Task()
    g, mixed = [], []
    for rows in (slice(0, 4), slice(4, 8)):
        g.append(task.gradient(task.flat(), 0, rows))
        p = task.gradient(task.flat() + 0.4 * g[-1] / g[-1].norm(), 0, rows)
        mixed.append(p - 0.6 * (g[-1] - (g[-1] @ p) / (p @ p) * p))
    gsam = GSAM(task.params, rho_max=0.4, rho_min=0.4, **SGD)
    m_sharpness_passes(gsam, closures_of(task, 0, 4))
    torch.testing.assert_close(torch.cat([param.grad.flatten() for param in task.params]), sum(mixed) / 2, rtol=1e-10, atol=1e-12)


def test_m_sharpness_in_plain_steps_is_the_plain_mean():
    task = Task()
    sam = LookSAM(task.params, k=2, alpha=0.0, **SGD)
    m_sharpness_passes(sam, closures_of(task, 0, 4))
    sam.step()
    w, calls = task.flat(), closures_of(task, 1, 4)
    m_sharpness_passes(sam, calls)
    torch.testing.assert_close(torch.cat([param.grad.flatten() for param in task.params]), task.gradient(w, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("call", range(4))
def test_an_overflow_in_any_pass_of_any_chunk_skips_the_step(call):
    task = Task(torch.float32)
    sam, scaler = SAM(task.params, **SGD), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before, calls = bits(task.flat()), []

    def closure(rows):
        scaler.scale(task.losses(0, rows).mean()).backward()
        if len(calls) == call:
            task.params[1].grad[0] = float("inf")
        calls.append(rows)

    closures = [lambda rows=rows: closure(rows) for rows in (slice(0, 4), slice(4, 8))]
    m_sharpness_passes(sam, closures)
    scaler.step(sam)
    scaler.update()
    assert len(calls) == 4
    assert bits(task.flat()) == before
    assert scaler.get_scale() == 512.0


def test_an_overflow_in_the_first_pass_of_a_chunk_skips_without_a_scaler():
    task = Task(torch.float32)
    sam, before, calls = SAM(task.params, **SGD), bits(task.flat()), []

    def closure():
        task.loss(0).backward()
        if not calls:
            task.params[1].grad[0] = float("inf")
        calls.append(1)

    m_sharpness_passes(sam, [closure, closure])
    sam.step()
    assert bits(task.flat()) == before


@pytest.mark.parametrize("call", range(4))
def test_an_error_in_a_chunk_ends_the_step(call):
    task = Task(torch.float32)
    sam, before, calls = SAM(task.params, **SGD), bits(task.flat()), []

    def closure():
        if len(calls) == call:
            raise KeyError
        calls.append(1)
        task.loss(0).backward()

    with pytest.raises(KeyError):
        m_sharpness_passes(sam, [closure, closure])
    assert bits(task.flat()) == before
    assert all(param.grad is None for param in task.params)
    with pytest.raises(RuntimeError, match="needs a closure"):
        sam.step()
    with pytest.raises(ValueError, match="m_sharpness_passes: closures must hold one for each chunk"):
        m_sharpness_passes(sam, [])
