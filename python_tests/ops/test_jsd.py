"""Jensen-Shannon consistency and the AugMix loss: golden numbers, peers, finite differences, properties, hand-over of the gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional import peer
from torch import Tensor
from torch.nn import functional as F

import vtkernels as vt
from vtkernels._core import native
from vtkernels._core.op import OPS
from vtkernels.losses import AugMixLoss, JsdCrossEntropy
from vtkernels.ops.jsd import reference
from vtkernels.ops.jsd.common import Call

F64 = torch.float64
CPU = ["reference"] + ["cpu"] * (native.why_missing() is None)
on_the_cpu = pytest.mark.parametrize("backend", CPU)


def golden_logits() -> Tensor:
    s, b, k = torch.tensor([0, 0.5, 1.1], dtype=F64), torch.arange(3, dtype=F64), torch.arange(5, dtype=F64)
    s, b, k = s[:, None, None], b[None, :, None], k[None, None, :]
    return (2 * torch.sin(s + 1.3 * b + 0.7 * k + 0.1 * b * k)).flatten(0, 1)


def published(logits: Tensor, target: Tensor | None, views: int = 3, weight: float = 12.0) -> Tensor:
    """google-research/augmix's formula, from softmaxes."""
    p = logits.unflatten(0, (views, -1)).softmax(-1)
    log_m = p.mean(0).clamp(1e-7, 1).log()
    loss = weight * sum(F.kl_div(log_m, q, reduction="batchmean") for q in p) / views
    return loss if target is None else loss + F.cross_entropy(logits[: len(logits) // views], target)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-14), (torch.float32, 1e-6)])
@on_the_cpu
def test_golden_numbers(backend, dtype, tolerance):
    if backend == "cpu" and dtype == F64:
        pytest.skip("the kernels compute in float32")
    logits = golden_logits().to(dtype).requires_grad_()
    loss = vt.jsd_consistency(logits, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(0.1118359131268359, abs=tolerance)
    expected = [-0.007935182609276756, -0.013628689228611516, 0.0020053930935241054, 0.013686183705282542, 0.0058722950390816256]
    assert logits.grad[0].tolist() == pytest.approx(expected, abs=tolerance)


def test_golden_numbers_of_the_floored_mixture():
    logits = torch.tensor([[0, -40, 1], [0.5, -42, 0]], dtype=F64)
    call = Call(logits, None, 2, (0.5, 0.5), 1.0, 0.0, "batchmean")
    assert vt.jsd_consistency(logits, num_views=2).item() == pytest.approx(0.06471342238941982, abs=1e-14)
    # the gradient of the probabilities, from which that of the logits is one step of the softmax's Jacobian away
    d_p = torch.tensor([[-0.25257666637327, -12.09758301827995, 0.13839410694362], [0.1670156852957877, -12.927990666610894, -0.1920135413873]], dtype=F64)
    p = logits.softmax(-1)
    d_logits = p * (d_p - (p * d_p).sum(-1, keepdim=True))
    torch.testing.assert_close(reference.gradient(call, torch.ones((), dtype=F64)), d_logits, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.1, 3.361582427147181), (0.0, 3.259082427147181)])
def test_golden_numbers_of_timms_class(smoothing, expected):
    logits = torch.tensor([[1, 2, -1, 0.5], [0.2, -0.3, 0.7, 1.1]], dtype=F64)
    both = torch.cat((logits, logits.flip(1)))
    assert JsdCrossEntropy(2, 12, smoothing)(both, torch.tensor([1, 3])).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("smoothing", [0.1, 0.0, None])
def test_timms_class_agrees(views, smoothing):
    timms = peer("timm.loss").JsdCrossEntropy(views, 12, smoothing)
    ours = JsdCrossEntropy(views, 12, smoothing)
    logits, target = 3 * torch.randn(views * 6, 17, dtype=F64), torch.randint(17, (views * 6,))
    found, expected = (logits.clone().requires_grad_() for _ in range(2))
    losses = [module(leaf, target) for module, leaf in ((ours, found), (timms, expected))]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    torch.autograd.backward(losses)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-14)


def test_the_published_formula_agrees():
    logits, target = 2 * torch.randn(12, 9, dtype=F64, requires_grad=True), torch.randint(9, (4,))
    torch.testing.assert_close(vt.augmix_loss(logits, target), published(logits, target), rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(f(logits, target), logits)[0] for f in (vt.augmix_loss, published))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_torchs_cross_entropy_agrees(soft, label_smoothing):
    logits = torch.randn(10, 7, dtype=F64)
    target = torch.randn(5, 7, dtype=F64).softmax(-1) if soft else torch.randint(7, (5,))
    found = vt.augmix_loss(logits, target, num_views=2, weight=0.0, label_smoothing=label_smoothing)
    torch.testing.assert_close(found, F.cross_entropy(logits[:5], target, label_smoothing=label_smoothing), rtol=1e-12, atol=0)


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_the_references_losses_are_its_gradients(target):
    """Autograd of the formula against the closed form, through the floor too."""
    logits = 12 * torch.randn(15, 20, dtype=F64, requires_grad=True)
    classes = torch.randint(20, (5,))
    call = Call(logits, classes if target == "hard" else F.one_hot(classes, 20).to(F64), 3, (0.2, 0.5, 0.3), 5.0, 0.1, "none")
    upstream = torch.randn(5, dtype=F64)
    (expected,) = torch.autograd.grad(reference.losses(call), logits, upstream)
    torch.testing.assert_close(reference.gradient(call, upstream), expected, rtol=1e-10, atol=1e-12)


# what the logits may be, and which sizes take other paths
SIZES = st.tuples(st.integers(2, 4), st.integers(1, 20), st.sampled_from([1, 2, 10, 16, 33, 70, 130]))
few = settings(max_examples=25, deadline=None)


def draw_logits(size: tuple[int, int, int], seed: int, gain: float = 3.0) -> Tensor:
    views, batch, classes = size
    return gain * torch.randn(views * batch, classes, generator=torch.Generator().manual_seed(seed))


@on_the_cpu
@given(size=SIZES, seed=st.integers(0, 999), gain=st.sampled_from([0.1, 3.0, 30.0]))
@few
def test_it_lies_between_0_and_the_logarithm_of_the_views(backend, size, seed, gain):
    loss = vt.jsd_consistency(draw_logits(size, seed, gain), num_views=size[0], reduction="none", backend=backend)
    assert loss.shape == (size[1],)
    # a floored class counts down to -3.7e-8 each
    assert bool((loss >= -1e-5).all()) and bool((loss <= math.log(size[0]) + 1e-5).all())


@on_the_cpu
@given(size=SIZES, seed=st.integers(0, 999))
@few
def test_equal_views_agree(backend, size, seed):
    one = draw_logits((1, *size[1:]), seed)
    logits = one.repeat(size[0], 1).requires_grad_()
    loss = vt.jsd_consistency(logits, num_views=size[0], backend=backend)
    loss.backward()
    assert abs(loss.item()) < 2e-6
    assert float(logits.grad.abs().max()) < 2e-6


@on_the_cpu
@given(size=SIZES, seed=st.integers(0, 999))
@few
def test_views_are_alike_and_gradients_of_a_row_sum_to_0(backend, size, seed):
    views, batch, _ = size
    logits = draw_logits(size, seed).requires_grad_()
    turned = logits.detach().unflatten(0, (views, batch)).roll(1, 0).flatten(0, 1).requires_grad_()
    losses = [vt.jsd_consistency(leaf, num_views=views, backend=backend) for leaf in (logits, turned)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    torch.autograd.backward(losses)
    torch.testing.assert_close(turned.grad.unflatten(0, (views, batch)).roll(-1, 0).flatten(0, 1), logits.grad, rtol=1e-4, atol=1e-6)
    assert float(logits.grad.sum(-1).abs().max()) < 2e-6


@on_the_cpu
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_reductions(backend, classes, reduction):
    logits, weights = draw_logits((3, 21, classes), 5), (0.2, 0.3, 0.5)
    each = vt.jsd_consistency(logits, weights=weights, reduction="none", backend=backend)
    expected = {"batchmean": each.sum() / 21, "sum": each.sum(), "none": each}[reduction]
    torch.testing.assert_close(vt.jsd_consistency(logits, weights=weights, reduction=reduction, backend=backend), expected)


@on_the_cpu
@pytest.mark.parametrize("classes", [12, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_impossible_classes_take_no_part(backend, classes, dtype):
    """Logits of -inf: a loss as if they were not there, and a gradient of exactly 0."""
    possible = draw_logits((3, 5, classes - 2), 7).to(dtype).requires_grad_()
    logits = torch.cat((possible.detach(), torch.full((15, 2), -torch.inf, dtype=dtype)), 1).requires_grad_()
    target = torch.randint(classes - 2, (5,))
    soft = F.one_hot(target, classes).float()
    expected = vt.augmix_loss(possible, target, backend="reference")
    expected.backward()
    for wanted in (target, soft):
        logits.grad = None
        loss = vt.augmix_loss(logits, wanted, backend=backend)
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        assert bool((logits.grad[:, -2:] == 0).all())
        torch.testing.assert_close(logits.grad[:, :-2], possible.grad, rtol=2e-2 if dtype != torch.float32 else 1e-4, atol=1e-5)


@on_the_cpu
@pytest.mark.parametrize("classes", [10, 200])
def test_not_a_number_stays_in_its_sample(backend, classes):
    logits = draw_logits((3, 20, classes), 1)
    expected = vt.jsd_consistency(logits, reduction="none", backend=backend)
    logits[24, 3], logits[7, 0] = torch.nan, torch.inf
    leaf = logits.clone().requires_grad_()
    loss = vt.jsd_consistency(leaf, reduction="none", backend=backend)
    loss.sum().backward()
    touched = torch.zeros(20, dtype=torch.bool)
    touched[[4, 7]] = True
    assert torch.equal(loss.isnan(), touched)
    assert torch.equal(loss[~touched], expected[~touched])
    assert torch.equal(leaf.grad.isnan().any(-1).view(3, 20).any(0), touched)


@on_the_cpu
def test_half_precision_gives_losses_in_float32(backend):
    for dtype in (torch.float16, torch.bfloat16):
        logits = draw_logits((3, 4, 10), 3).to(dtype)
        loss = vt.augmix_loss(logits, torch.arange(4), backend=backend)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, vt.augmix_loss(logits.double(), torch.arange(4)).float(), rtol=1e-5, atol=0)


@on_the_cpu
def test_autocast_casts_nothing(backend):
    logits = draw_logits((3, 4, 10), 3).requires_grad_()
    outside = vt.augmix_loss(logits, torch.arange(4), backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        inside = vt.augmix_loss(logits, torch.arange(4), backend=backend)
    assert torch.equal(inside, outside)


@on_the_cpu
def test_a_grad_scaler_keeps_small_gradients_in_float16(backend):
    """The factor is applied before the gradient is rounded to float16, where it would be 0."""
    logits = draw_logits((3, 64, 100), 3, gain=0.01).half().requires_grad_()
    (vt.jsd_consistency(logits, backend=backend) * 65536.0).backward()
    wide = logits.detach().double().requires_grad_()
    (vt.jsd_consistency(wide) * 65536.0).backward()
    assert float((logits.grad.double() - wide.grad).norm() / wide.grad.norm()) < 1e-2


def augmix_inputs(classes: int = 40) -> tuple[Tensor, Tensor]:
    return draw_logits((3, 9, classes), 11), torch.randint(classes, (9,))


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("factor", [1.0, -0.5, 3.0])
def test_the_gradient_written_in_the_forward_is_the_backwards(backend, factor):
    values, target = augmix_inputs()
    leaf = values.clone().requires_grad_()
    (vt.augmix_loss(leaf, target, backend=backend) * factor).backward()
    scalars = (3, 12.0, 0.0)
    computed = torch.ops.vtkernels.augmix_loss_backward(torch.tensor(factor), values, target, *scalars, False, backend)[0]
    torch.testing.assert_close(leaf.grad, computed, rtol=3e-7, atol=1e-10)
    loss, gradient = torch.ops.vtkernels.augmix_loss(values, target, *scalars, True, backend)
    torch.testing.assert_close(gradient * factor, computed, rtol=3e-7, atol=1e-10)
    assert torch.equal(loss, vt.augmix_loss(values, target, backend=backend))
    assert torch.ops.vtkernels.augmix_loss(values, target, *scalars, False, backend)[1].numel() == 0


@on_the_cpu
def test_a_gradient_is_given_away_once(backend):
    """What was handed over belongs to the leaf: changed in place there, it must not come back from a second backward."""
    values, target = augmix_inputs()
    leaf = values.clone().requires_grad_()
    loss = vt.augmix_loss(leaf, target, backend=backend)
    loss.backward(retain_graph=True)
    first = leaf.grad.clone()
    leaf.grad.zero_()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, first, rtol=1e-6, atol=1e-9)
    loss.backward()
    torch.testing.assert_close(leaf.grad, 2 * first, rtol=1e-6, atol=1e-9)


def test_handing_over_copies_nothing():
    values, target = augmix_inputs()
    leaf = values.clone().requires_grad_()
    loss = vt.augmix_loss(leaf, target)
    gradient = loss.grad_fn.gradient
    where = gradient.data_ptr()
    del gradient
    loss.backward()
    assert leaf.grad.data_ptr() == where


def test_no_gradient_is_written_where_none_is_wanted():
    values, target = augmix_inputs()
    for logits in (values, values.clone().requires_grad_()):
        with torch.no_grad():
            assert vt.augmix_loss(logits, target).grad_fn is None
    half = values.half().requires_grad_()
    assert vt.augmix_loss(half, target).grad_fn.gradient is None
    assert vt.jsd_consistency(values.clone().requires_grad_(), reduction="none").grad_fn.gradient is None


@pytest.mark.skipif("cpu" not in CPU, reason="the native library is not there")
@pytest.mark.parametrize("classes", [10, 333])
def test_the_number_of_threads_changes_no_bit(classes):
    values, target = draw_logits((3, 301, classes), 2), torch.randint(classes, (301,))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = values.clone().requires_grad_()
            loss = vt.augmix_loss(leaf, target, backend="cpu")
            loss.backward()
            found.append((loss.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_modules_pass_their_arguments_on():
    logits, target = augmix_inputs(10)
    expected = vt.augmix_loss(logits, target, weight=3.0, label_smoothing=0.2)
    assert torch.equal(AugMixLoss(weight=3.0, label_smoothing=0.2)(logits, target), expected)
    assert torch.equal(JsdCrossEntropy(3, 3.0, 0.2)(logits, target.repeat(3)), expected)
    soft = F.one_hot(target, 10).float()
    torch.testing.assert_close(AugMixLoss()(logits, soft), AugMixLoss()(logits, target))
    assert repr(AugMixLoss()) == "AugMixLoss(num_views=3, weight=12.0, label_smoothing=0.0)"
    assert repr(JsdCrossEntropy()) == "JsdCrossEntropy(num_splits=3, alpha=12, smoothing=0.1)"
    with pytest.raises(ValueError, match="must be one of auto"):
        AugMixLoss(backend="fast")(logits, target)


def test_second_derivatives_are_those_of_the_reference():
    logits = draw_logits((2, 2, 3), 1).double().requires_grad_()
    call = Call(logits, None, 2, (0.5, 0.5), 1.0, 0.0, "none")
    assert torch.autograd.gradgradcheck(lambda x: reference.losses(call._replace(logits=x)), logits)
    (grad,) = torch.autograd.grad(vt.jsd_consistency(logits, num_views=2, reduction="none").sum(), logits, create_graph=True)
    (expected,) = torch.autograd.grad(reference.losses(call._replace(logits=logits)).sum(), logits, create_graph=True)
    second, truth = (torch.autograd.grad(value.square().sum(), logits)[0] for value in (grad, expected))
    torch.testing.assert_close(second, truth)


def test_the_batch_size_may_be_dynamic(fresh_compiler):
    compiled = torch.compile(lambda x, t: vt.augmix_loss(x, t), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (4, 6, 9):
        logits, target = draw_logits((3, batch, 10), batch).requires_grad_(), torch.randint(10, (batch,))
        torch.testing.assert_close(compiled(logits, target), vt.augmix_loss(logits, target))


def test_the_names_are_public():
    assert {"jsd_consistency", "augmix_loss", "losses"} <= set(vt.__all__)
    assert {"jsd_consistency", "augmix_loss"} <= set(OPS)
    assert vt.losses.JsdCrossEntropy is JsdCrossEntropy
