"""The head and the loss of dense relative localisation: the spec's golden numbers, both ways through the first layer, the schedule."""

import copy
import math

import pytest
import torch
from torch import nn

import vtkernels as vt
from vtkernels.ops.drloc_pairs import losses


def test_l1_golden():
    prediction, target = torch.tensor([[0.2, 1.5], [2.0, 0.1]]), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert losses.l1(prediction, target, mean_of_coordinates=True).item() == pytest.approx(0.6, abs=1e-7)
    # the paper adds the coordinates
    assert losses.l1(prediction, target).item() == pytest.approx(1.2, abs=1e-7)


def test_l1_gradient_is_the_sign_and_0_at_equality():
    prediction = torch.tensor([[0.2, 1.5], [3.0, 0.1]], requires_grad=True)
    losses.l1(prediction, torch.tensor([[1.0, 2.0], [3.0, 0.0]]), mean_of_coordinates=True).backward()
    assert prediction.grad.tolist() == [[-0.25, -0.25], [0, 0.25]]


@pytest.fixture
def golden():
    i, j, c = torch.meshgrid(torch.arange(2.0), torch.arange(4.0), torch.arange(2.0), indexing="ij")
    stacked = torch.sin(i.double() + 2 * j.double() + 3 * c.double())
    return (stacked[..., 0], stacked[..., 1]), torch.tensor([[1.0, 3.0], [0.0, 2.0]], dtype=torch.float64)


def test_ce_and_cbr_golden(golden):
    assert losses.ce(*golden).item() == pytest.approx(1.6296343937357998, rel=1e-12)
    assert losses.cbr(*golden).item() == pytest.approx(1.2069380867630914, rel=1e-12)
    assert losses.cbr(*golden, variance=False).item() == pytest.approx(1.7043550682175237, rel=1e-12)


def test_half_precision_predictions_have_float32_losses(golden):
    logits, target = golden
    half = tuple(axis.bfloat16() for axis in logits)
    for loss in (losses.ce, losses.cbr):
        found = loss(half, target.float())
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(loss(tuple(axis.double() for axis in half), target).item(), rel=1e-5)


def test_cbr_reaches_mean_and_variance(golden):
    logits, target = golden
    assert torch.autograd.gradcheck(lambda *axes: losses.cbr(axes, target), tuple(axis.clone().requires_grad_() for axis in logits))


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (10, 0.5), (20, 1.0), (100, 0.7142857142857143), (300, 0.0), (400, 0.0), (-1, 0.0)])
def test_the_schedule(epoch, share):
    assert vt.losses.drloc_weight(epoch, 0.5) == pytest.approx(0.5 * share)


def test_the_schedule_without_a_start():
    assert vt.losses.drloc_weight(0, 0.5, warmup_epochs=0, total_epochs=100) == 0.5
    with pytest.raises(ValueError, match="warmup_epochs must lie in"):
        vt.losses.DrlocLoss(8, warmup_epochs=20, total_epochs=20)


class Released(nn.Module):
    """The published head's algorithm for given positions of a square map: [B, C, H, W]."""

    def __init__(self, head: vt.nn.DrlocHead):
        super().__init__()
        self.layers, self.unshared = copy.deepcopy(head.layers), copy.deepcopy(head.unshared)
        self.use_abs, self.mode = head.target == "abs", head.mode

    def forward(self, x, positions):
        b, _, h, _ = x.shape
        picked = [torch.stack([x[i, :, p[i, :, 0], p[i, :, 1]].T for i in range(b)]) for p in positions.split(2, -1)]
        hidden = self.layers(torch.cat(picked, 2))
        target = (positions[..., :2] - positions[..., 2:]).to(x.dtype).view(-1, 2)
        target = target.abs() if self.use_abs else target + (h - 1)
        if self.mode == "l1":
            return nn.functional.l1_loss(hidden.view(-1, 2), target)
        x_logits, y_logits = (layer(hidden).flatten(0, 1) for layer in self.unshared)
        if self.mode == "ce":
            loss = nn.functional.cross_entropy
            return loss(x_logits, target[:, 0].long()) + loss(y_logits, target[:, 1].long())
        return losses.cbr((x_logits, y_logits), target)


@pytest.mark.parametrize("first_layer", ["pairs", "positions"])
@pytest.mark.parametrize("target", ["abs", "signed"])
@pytest.mark.parametrize("mode", ["l1", "ce", "cbr"])
def test_released_is_the_published_algorithm(mode, target, first_layer):
    head = vt.nn.DrlocHead(12, 9, mode, target=target, reference="released", grid=5, hidden=16, first_layer=first_layer, dtype=torch.float64)
    published = Released(head)
    features = torch.randn(3, 5, 5, 12, dtype=torch.float64, requires_grad=True)
    positions = torch.randint(0, 5, (3, 9, 4))
    found, expected = head(features, positions), published(features.permute(0, 3, 1, 2), positions)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(found, [features, *head.parameters()])
    wanted = torch.autograd.grad(expected, [features, *published.parameters()])
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reference", ["paper", "released"])
def test_paper_and_released_differ_by_unit_and_mean(reference):
    head = vt.nn.DrlocHead(4, 6, reference=reference, hidden=8)
    features, positions = torch.randn(2, 3, 5, 4), torch.randint(0, 3, (2, 6, 4))
    prediction, targets, _ = head.predict(features, positions)
    distance = (positions[..., :2] - positions[..., 2:]).abs()
    torch.testing.assert_close(targets, distance / torch.tensor([3.0, 5.0]) if reference == "paper" else distance.float())
    error = (prediction - targets).abs()
    torch.testing.assert_close(head(features, positions), error.sum(-1).mean() if reference == "paper" else error.mean())


def test_signed_targets_of_the_paper_are_signed_and_of_the_released_code_from_0():
    positions = torch.tensor([[[0, 4, 2, 0]]])
    features = torch.randn(1, 3, 5, 4)

    def targets(**options):
        return vt.nn.DrlocHead(4, 6, target="signed", hidden=8, **options).predict(features, positions).targets[0, 0].tolist()

    assert targets() == pytest.approx([-2 / 3, 4 / 5])
    assert targets(reference="released") == [0, 8]
    assert targets(mode="ce", grid=(3, 5)) == [0, 8]


def test_classes_of_a_map_that_is_not_square():
    head = vt.nn.DrlocHead(4, 60, "ce", target="signed", grid=(3, 5), hidden=8)
    assert [layer.out_features for layer in head.unshared] == [5, 9]
    head(torch.randn(2, 3, 5, 4)).backward()
    with pytest.raises(ValueError, match=r"the map must be no larger than grid=\(3, 5\), got 4 x 5"):
        head(torch.randn(2, 4, 5, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["bhwc", "bchw", "bnc"])
def test_both_ways_through_the_first_layer_agree(layout, dtype):
    shape = {"bhwc": (2, 4, 6, 8), "bchw": (2, 8, 4, 6), "bnc": (2, 24, 8)}[layout]
    heads = [vt.nn.DrlocHead(8, 40, hidden=16, layout=layout, map_size=(4, 6) if layout == "bnc" else None, first_layer="pairs", dtype=dtype)]
    heads.append(copy.deepcopy(heads[0]))
    heads[1].first_layer = "positions"
    results = []
    for head in heads:
        torch.manual_seed(3)
        features = torch.ones(shape, dtype=dtype).cumsum(1).sin().requires_grad_()
        found = head.predict(features)
        loss = head(features)
        results.append([*found, loss, *torch.autograd.grad(loss, [features, *head.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pairs", "size", "calls"), [(64, 7, 2), (64, 8, 1), (49, 7, 1), (32, 7, 1)])
def test_the_cheaper_first_layer_is_taken(monkeypatch, pairs, size, calls):
    from vtkernels.ops.drloc_pairs import module

    seen = []
    real = module.drloc_pairs
    monkeypatch.setattr(module, "drloc_pairs", lambda *args, **kwargs: seen.append(1) or real(*args, **kwargs))
    vt.nn.DrlocHead(4, pairs, hidden=8)(torch.randn(1, size, size, 4))
    assert len(seen) == calls


def test_training_draws_and_eval_does_not():
    head, features = vt.nn.DrlocHead(4, 6, hidden=8), torch.randn(2, 5, 5, 4)
    first, second = (head.predict(features).positions for _ in range(2))
    assert not torch.equal(first, second)
    head.eval()
    before = torch.get_rng_state()
    first, second = (head.predict(features).positions for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_importing_seeds_nothing():
    before = torch.initial_seed()
    import importlib

    import vtkernels.losses.drloc

    importlib.reload(vtkernels.losses.drloc)
    assert torch.initial_seed() == before


def test_another_image_leaves_the_loss_of_the_first_alone():
    head, positions = vt.nn.DrlocHead(4, 6, hidden=8), torch.randint(0, 3, (1, 6, 4)).expand(2, 6, 4)
    features = torch.randn(2, 3, 3, 4)
    alone = head.predict(features[:1], positions[:1]).prediction
    torch.testing.assert_close(head.predict(features, positions).prediction[:1], alone)


def test_constant_features_have_the_same_gradient_at_symmetric_positions():
    """Every pair and its mirror image: the gradient of constant features is as symmetric as the pairs are."""
    head = vt.nn.DrlocHead(4, 6, hidden=8, dtype=torch.float64)
    features = torch.ones(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    positions = torch.randint(0, 3, (1, 40, 4))
    both = torch.cat([positions, 2 - positions], 1)
    (grad,) = torch.autograd.grad(head(features, both), features)
    torch.testing.assert_close(grad, grad.flip(1, 2))


def test_autocast_computes_the_loss_in_float32():
    head, features = vt.nn.DrlocHead(16, 60, hidden=32), torch.randn(2, 5, 5, 16, requires_grad=True)
    positions = torch.randint(0, 5, (2, 60, 4))
    exact = head(features, positions)
    for head.first_layer in ("pairs", "positions"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = head(features, positions)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=2e-2, atol=2e-2)
        loss.backward()
        assert features.grad.dtype == torch.float32


def test_parameter_names_are_the_published_ones():
    l1 = ["layers.0", "layers.2", "layers.4"]
    assert list(vt.nn.DrlocHead(4).state_dict()) == [f"{name}.{part}" for name in l1 for part in ("weight", "bias")]
    ce = [*l1, "unshared.0", "unshared.1"]
    assert list(vt.nn.DrlocHead(4, mode="ce", grid=7).state_dict()) == [f"{name}.{part}" for name in ce for part in ("weight", "bias")]
    assert [tuple(p.shape) for p in vt.nn.DrlocHead(4).parameters()][::2] == [(512, 8), (512, 512), (2, 512)]


def test_several_scales_add_up():
    loss = vt.losses.DrlocLoss([4, 8], 0.1, num_pairs=6, hidden=8)
    maps, positions = [torch.randn(2, 6, 6, 4), torch.randn(2, 3, 3, 8)], [torch.randint(0, size, (2, 6, 4)) for size in (6, 3)]
    expected = sum(head(x, p) for head, x, p in zip(loss.heads, maps, positions, strict=True))
    torch.testing.assert_close(loss(maps, positions=positions), 0.1 * expected)
    torch.testing.assert_close(loss(maps, 100, positions), 0.1 * 0.7142857142857143 * expected)
    with pytest.raises(ValueError, match="be 2 maps, one for each scale, got 1 maps"):
        loss(maps[0])


def test_a_grid_for_each_scale():
    loss = vt.losses.DrlocLoss([4, 8], mode="ce", grid=[6, (3, 4)], num_pairs=6, hidden=8)
    assert [[layer.out_features for layer in head.unshared] for head in loss.heads] == [[6, 6], [3, 4]]
    assert math.isfinite(loss([torch.randn(2, 6, 6, 4), torch.randn(2, 3, 4, 8)]).item())
    with pytest.raises(ValueError, match="one entry for each of the 2 scales, got 1"):
        vt.losses.DrlocLoss([4, 8], mode="ce", grid=[6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "l2"}, "mode must be one of l1, ce, cbr, got 'l2'"),
        ({"mode": "ce"}, "grid must be given for mode ce"),
        ({"target": "x"}, "target must be one of abs, signed"),
        ({"reference": "x"}, "reference must be one of paper, released"),
        ({"first_layer": "x"}, "first_layer must be one of auto, pairs, positions"),
        ({"init": "x"}, "init must be one of"),
        ({"num_pairs": 0}, "num_pairs must be a positive int, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vt.nn.DrlocHead(4, **options)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="features must have dim=4 channels, got 5; is the layout bhwc"):
        vt.nn.DrlocHead(4)(torch.zeros(1, 3, 3, 5))


def test_a_head_learns():
    """Features that tell their position: the loss falls to a fraction."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    features = torch.stack([y / 5, x / 6, torch.ones_like(y)], -1)[None].expand(4, -1, -1, -1)
    loss = vt.losses.DrlocLoss(3, 1.0, hidden=64, init="default")
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3)
    values = []
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(features)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.3 * sum(values[:10])
