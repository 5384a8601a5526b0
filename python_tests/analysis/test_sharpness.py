"""Hessian eigenvalues, spectra, traces and balls against problems that are known, and against dense Hessians."""

import copy
import json

import pytest
import torch
from known_problems import EIGENVALUES, ONE_IMAGE, TRACE, dense_hessian, first_number, golden_loader, golden_model, quadratic
from torch import nn

import vtkernels as vt
from vtkernels.analysis import _progress
from vtkernels.analysis._loss import Loss
from vtkernels.analysis._spectrum import Lanczos, PowerIteration, density
from vtkernels.analysis.sharpness import STARTS, Options, noisy_loss, run, sharpness


def golden_loss(**options):
    return Loss(golden_model(), golden_loader(), dtype=torch.float64, **options)


def small_net(seed: int, norm: bool = False) -> tuple[nn.Module, list]:
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.Tanh(), nn.Linear(6, 3)]
    model, images, targets = nn.Sequential(*layers), torch.randn(40, 5), torch.randint(3, (40,))
    if norm:
        # statistics of their own: eval mode differs from that of the batch
        model.train()(2 * images + 1)
    return model, [(images[:25], targets[:25]), (images[25:], targets[25:])]


def test_golden_loss_gradient_and_spectrum():
    loss = golden_loss()
    assert loss.value() == pytest.approx(0.758825422951153, abs=1e-14)
    assert float(loss.gradient().norm()) == pytest.approx(1.1801658261505272, abs=1e-13)
    found = sharpness(golden_model(), golden_loader(), dtype=torch.float64, trace_samples=400, seed=3)
    assert found.largest == pytest.approx(2.89305183, abs=1e-8)
    assert found.smallest == pytest.approx(-0.40584381, abs=1e-8)
    # the threefold 0 is one Ritz value: a Krylov space meets an eigenspace in one direction
    assert len(found.ritz[0]["values"]) == 10
    for value, exact in zip(found.ritz[0]["values"], sorted(set(EIGENVALUES)), strict=True):
        assert value == pytest.approx(exact, abs=1e-7)
    assert abs(found.trace - TRACE) < 4 * found.trace_error
    assert found.power[0] == pytest.approx(2.89305183, rel=1e-3)


def test_golden_power_iteration_from_ones():
    loss = golden_loss()
    iteration = PowerIteration(loss.product, steps=7, tolerance=0.0)
    iteration.begin(torch.ones(12, dtype=torch.float64))
    while iteration.step():
        pass
    assert iteration.history[0][6] == pytest.approx(2.89289, abs=5e-6)


def test_trace_over_all_signs_is_exact():
    loss = golden_loss()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 12)[: 2**11]
    # half of all sign vectors: the other half are their opposites, of the same value
    matrix = torch.stack([loss.product(row) for row in torch.eye(12, dtype=torch.float64)])
    assert float(((signs @ matrix) * signs).sum(1).mean()) == pytest.approx(TRACE, abs=1e-12)


def test_product_against_finite_differences():
    loss, vector, step = golden_loss(), torch.linspace(-1, 1, 12, dtype=torch.float64), 1e-5
    sides = []
    for sign in (1, -1):
        with loss.moved(sign * step * vector):
            sides.append(loss.gradient())
    torch.testing.assert_close((sides[0] - sides[1]) / (2 * step), loss.product(vector), rtol=0, atol=1e-6)


def test_expected_flatness_is_second_order():
    assert noisy_loss(golden_loss(), 0.05, draws=2000) == pytest.approx(0.7641577548, abs=2e-4)


def test_quadratic_has_its_spectrum_and_power_iteration_deflates():
    eigenvalues = [-7.0, -1.0, 0.5, 2.0, 3.0, 5.0]
    found = sharpness(
        quadratic(eigenvalues), ONE_IMAGE, first_number, dtype=torch.float64, eigenvalues=3, power_steps=1000, tolerance=1e-10, trace_samples=0, rho=0.1
    )
    assert found.ritz[0]["values"] == pytest.approx(eigenvalues, abs=1e-10)
    # the largest in modulus is not the largest; the 1e-6 in the norm shortens vectors, and quotients by twice that
    assert found.power == pytest.approx([-7.0, 5.0, 3.0], rel=3e-6)
    assert found.largest == pytest.approx(5.0) and found.smallest == pytest.approx(-7.0)


def test_millions_of_parameters_are_summed_precisely():
    # torch's own single precision sums of so many numbers are off by a thousandth
    scale = torch.full((4_000_000,), 3.0)
    scale[0] = 300.0
    run_ = Lanczos(lambda vector: scale * vector, torch.ones(len(scale)), 3)
    while run_.step():
        pass
    assert run_.diagonal[0] == pytest.approx(float(scale.double().mean()), rel=1e-6)
    iteration = PowerIteration(lambda vector: scale * vector, steps=2, tolerance=0.0)
    iteration.begin(torch.where(scale > 3, 1.0, 1e-4))
    while iteration.step():
        pass
    assert iteration.values[0] == pytest.approx(300.0, rel=1e-5)


@pytest.mark.parametrize("rho", [1e-5, 1e-3, 0.1])
def test_average_in_a_small_ball_of_a_single_precision_model(rho):
    # the loss is 7.3, whose rounding in single precision is a thousand times what the smallest step raises it by
    found = sharpness(quadratic([4.0] * 10).float(), ONE_IMAGE, first_number, rho=rho, lanczos_steps=1)
    assert found.average == pytest.approx(0.5 * rho**2 * 4.0, rel=1e-4)


def test_power_iteration_stops_by_its_residual_where_it_begins_with_an_eigenvector():
    model, loader = small_net(0)
    found = sharpness(model, loader, lanczos_steps=40, trace_samples=0, eigenvalues=2)
    assert [len(quotients) for quotients in found.history] == [1, 1]
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    exact = torch.linalg.eigvalsh(dense_hessian(model, images, targets)).abs().sort(descending=True).values[:2]
    for value, error, modulus in zip(found.power, found.power_error, exact.tolist(), strict=True):
        assert abs(value) == pytest.approx(modulus, rel=1e-4) and error <= 1e-3 * modulus


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.7, 1), (1.0, 2)])
def test_products_are_the_same_whatever_is_kept(share, kept):
    model, loader = small_net(2)
    plenty, plain = Loss(model, loader, room=2**30), Loss(model, loader)
    vector = plain.drawn(0)
    plenty.product(vector)
    loss = Loss(model, loader, room=int(share * (2**30 - plenty._free)))
    for _ in range(2):
        assert torch.equal(loss.product(vector), plain.product(vector))
    assert len(loss._graphs) == kept
    # other weights have another Hessian
    with loss.moved(vector), plain.moved(vector):
        assert torch.equal(loss.product(2 * vector), plain.product(2 * vector))


def test_average_in_the_ball_of_a_quadratic_is_half_the_mean_eigenvalue():
    found = sharpness(quadratic([2.0] * 8), ONE_IMAGE, first_number, dtype=torch.float64, rho=0.1, lanczos_steps=5)
    assert found.average == pytest.approx(0.5 * 0.1**2 * 2.0)
    # w A w / 2 with A = 2 along its gradient 2 w: a quadratic's rise is exact
    norm = float(torch.linspace(-1, 1, 8, dtype=torch.float64).norm())
    assert found.maximum == pytest.approx((norm + 0.1) ** 2 - norm**2)
    assert found.per_batch == pytest.approx(found.maximum)
    assert found.trace == pytest.approx(16.0) and found.trace_error == pytest.approx(0.0, abs=1e-12)
    assert len(found.ritz[0]["values"]) == 1


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch_norm"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_largest_eigenvalue_of_a_dense_hessian_in_single_precision(seed, start, norm):
    model, loader = small_net(seed, norm)
    before = copy.deepcopy(model.state_dict())
    found = sharpness(model, loader, lanczos_steps=30, power_steps=500, power_start=start, tolerance=1e-6, trace_samples=2, seed=seed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and model.training
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    exact = torch.linalg.eigvalsh(dense_hessian(model, images, targets))
    assert found.largest == pytest.approx(float(exact[-1]), rel=1e-3)
    assert found.power[0] == pytest.approx(float(exact[exact.abs().argmax()]), rel=1e-3)
    assert found.samples == 40


def test_subsets_of_parameters():
    model, loader = small_net(0)
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    found = sharpness(model, loader, blocks=("0", "3.weight"), lanczos_steps=60, trace_samples=0)
    for pattern, names in {"0": ["0.weight", "0.bias"], "3.weight": ["3.weight"]}.items():
        exact = torch.linalg.eigvalsh(dense_hessian(copy.deepcopy(model), images, targets, names))[-1]
        assert found.blocks[pattern] == pytest.approx(float(exact), rel=1e-3)
    frozen = copy.deepcopy(model)
    frozen[0].requires_grad_(False)
    assert sharpness(frozen, loader, only=("*.weight",), trace_samples=0).parameters == 18


def test_half_precision_model_is_computed_in_single():
    model, loader = small_net(1)
    half = copy.deepcopy(model).bfloat16()
    found = sharpness(half, [(images.bfloat16(), targets) for images, targets in loader], trace_samples=0, seed=1)
    widened = copy.deepcopy(half).float()
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    exact = torch.linalg.eigvalsh(dense_hessian(widened, images.bfloat16(), targets))[-1]
    assert found.largest == pytest.approx(float(exact), rel=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert sharpness(half, [(images.bfloat16(), targets)], trace_samples=0, seed=1).largest == pytest.approx(found.largest, rel=1e-4)


def test_density_integrates_to_one():
    loss = golden_loss()
    run_ = Lanczos(loss.product, torch.ones(12, dtype=torch.float64), 12)
    while run_.step():
        pass
    points, values = density([run_.ritz()])
    assert float(torch.trapezoid(values, points)) == pytest.approx(1.0, abs=1e-6)


WORDS = ("bert_nano", "transformer_nano")


@pytest.mark.parametrize("name", [name for name in vt.list_models("*_nano*") if name not in WORDS])
def test_every_family_has_a_symmetric_hessian(name):
    """Its product with vectors, that is: what an op forgot to pass on would show in one order and not in the other."""
    torch.manual_seed(0)
    model = vt.create_model(name, num_classes=4)
    loss = Loss(model, [(torch.randn(2, 3, 32, 32), torch.tensor([0, 3]))], dtype=torch.float64)
    first, second = loss.drawn(0), loss.drawn(1)
    one, other = loss.product(first), loss.product(second)
    loss._room = loss._free = 2**30
    torch.testing.assert_close(loss.product(first), one, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.product(first), one, rtol=1e-12, atol=0)
    assert one.any() and float(torch.dot(one, second)) == pytest.approx(float(torch.dot(other, first)), rel=1e-6, abs=1e-9 * float(one.norm() * second.norm()))


# with smooth activations: where one has a kink, differences find it and derivatives do not
@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "cait_nano_patch4_32", "swin_nano_patch4_window4_32", "vitae_nano_32", "cvt_nano_32"])
def test_families_have_curvature_of_finite_differences(name):
    torch.manual_seed(0)
    model = vt.create_model(name, num_classes=4)
    loss = Loss(model, [(torch.randn(2, 3, 32, 32), torch.tensor([0, 3]))], dtype=torch.float64)
    vector, step = loss.drawn(0), 1e-6
    sides = []
    for sign in (1, -1):
        with loss.moved(sign * step * vector):
            sides.append(loss.gradient())
    product = loss.product(vector)
    assert float(((sides[0] - sides[1]) / (2 * step) - product).norm()) <= 1e-6 * float(product.norm())


def test_interrupted_work_keeps_what_is_done(monkeypatch, tmp_path):
    class Stopped(_progress.Progress):
        def advance(self, note=""):
            super().advance(note)
            if self.what == "sharpness: Lanczos" and self.done == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(_progress, "Progress", Stopped)
    found = sharpness(golden_model(), golden_loader())
    assert not found.complete and len(found.ritz[0]["values"]) == 3 and found.largest is not None and not found.power
    paths = found.save(tmp_path)
    assert json.loads(paths[0].read_text())["complete"] is False and paths[1].stat().st_size > 5000


def test_from_the_options_of_the_command_line(tmp_path):
    options = Options(model="vit_nano_patch4_32", samples=12, lanczos_steps=3, power_steps=2, trace_samples=1, draws=1, blocks=("head",), device="cpu")
    found = run(options)
    assert found.samples == 12 and found.complete and "largest eigenvalue of head" in found.summary()
    names = [path.name for path in found.save(tmp_path / "new")]
    assert names == ["sharpness.json", "sharpness.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": []}, "loader must give at least one sample, got none"),
        ({"only": ("nowhere",)}, "only must name trained parameters"),
        ({"rho": 0.0}, "rho must be positive"),
        ({"lanczos_steps": 0}, "lanczos_steps must be at least 1"),
        ({"model": nn.Linear(2, 1)}, "at least two classes apart"),
        ({"loader": [(torch.full((1, 2), torch.nan), torch.tensor([0]))]}, "must be finite"),
    ],
)
def test_bad_input_is_told(change, message):
    arguments = {"model": golden_model(), "loader": golden_loader(), **change}
    if isinstance(arguments["model"], nn.Linear):
        arguments["loader"] = [(images, 0 * targets) for images, targets in arguments["loader"]]
    with pytest.raises(ValueError, match=message):
        sharpness(arguments.pop("model"), arguments.pop("loader"), **arguments)


def test_weights_of_nan_are_told():
    model = golden_model()
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite weights, got NaN or infinity in 0.weight"):
        sharpness(model, golden_loader())
