"""Loss surfaces: their directions, their centre, and the line between two models."""

import copy
import json

import numpy as np
import pytest
import torch
from known_problems import ONE_IMAGE, first_number, golden_loader, golden_model, quadratic
from torch import nn
from torch.nn import functional as F

from vtkernels.analysis import _progress
from vtkernels.analysis.landscape import Landscape, Options, interpolation, landscape, normalised_by_filter, random_direction, run


def net_with_statistics(seed: int) -> tuple[nn.Module, list]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    images, targets = torch.randn(20, 1, 6, 6), torch.randint(3, (20,))
    model.train()(images)
    return model, [(images[:12], targets[:12]), (images[12:], targets[12:])]


def test_golden_filter_normalisation():
    weight, direction = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).double(), torch.tensor([[1.0, 1.0], [2.0, 0.0]]).double()
    expected = torch.tensor([[3.5355339, 3.5355339], [1.0, 0.0]]).double()
    torch.testing.assert_close(normalised_by_filter(direction, weight), expected, rtol=0, atol=1e-7)


def test_directions_have_the_filters_lengths_and_spare_biases():
    model, _ = net_with_statistics(0)
    parameters = list(model.parameters())
    for value, direction in zip(parameters, random_direction(parameters, 5), strict=True):
        if value.dim() == 1:
            assert not direction.any()
        else:
            torch.testing.assert_close(direction.flatten(1).norm(dim=1), value.detach().flatten(1).norm(dim=1))
    free = random_direction(parameters, 5, "none")
    assert all(direction.any() for direction in free)
    assert all(torch.equal(one, two) for one, two in zip(free, random_direction(parameters, 5, "none"), strict=True))


def test_centre_is_the_loss_and_the_model_is_untouched():
    model, loader = net_with_statistics(1)
    model.train()
    before = copy.deepcopy(model.state_dict())
    found = landscape(model, loader, points=5, seed=2)
    with torch.no_grad():
        copied = copy.deepcopy(model).eval()
        images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
        expected = float(F.cross_entropy(copied(images), targets))
    assert found.loss == found.surface[2, 2] == found.lines[0, 2] == found.lines[1, 2]
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and model.training
    # the axes of the surface are the lines
    np.testing.assert_array_equal(found.surface[:, 2], found.lines[0])
    np.testing.assert_array_equal(found.surface[2], found.lines[1])


def test_one_seed_one_surface():
    model, loader = net_with_statistics(1)
    first, same, other = (landscape(model, loader, points=3, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.surface, same.surface)
    assert not np.array_equal(first.surface, other.surface)


def test_surface_of_a_quadratic_is_a_parabola():
    model = quadratic([1.0, 2.0, 4.0])
    found = landscape(model, ONE_IMAGE, first_number, points=5, norm="none", seed=3)
    model = model.float()
    first, second = (random_direction([model.weight], 3 + offset, "none")[0] for offset in (0, 1))
    for row, along in enumerate(found.steps):
        for column, across in enumerate(found.steps):
            place = (model.weight + along * first + across * second).detach().double()
            assert found.surface[row, column] == pytest.approx(float(0.5 * place @ model.matrix.double() @ place), rel=1e-5)


def test_line_between_two_models():
    first, loader = net_with_statistics(1)
    second, _ = net_with_statistics(2)
    found = interpolation(first, second, loader, points=9)
    assert found.line_steps[0] == -0.5 and found.line_steps[-1] == 1.5
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    for place, model in ((2, first), (6, second)):
        with torch.no_grad():
            logits = copy.deepcopy(model).eval()(images)
        assert found.line_losses[place] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-6)
        assert found.line_accuracies[place] == pytest.approx(float((logits.argmax(1) == targets).double().mean()))


def test_statistics_computed_anew_are_those_of_the_data():
    first, loader = net_with_statistics(1)
    second, _ = net_with_statistics(2)
    found = interpolation(first, second, loader, points=3, low=0.0, high=1.0, states=False)
    model = copy.deepcopy(first)
    model[1].reset_running_stats()
    model[1].momentum = None
    with torch.no_grad():
        for images, _ in loader:
            model.train()(images)
        images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
        assert found.line_losses[0] == pytest.approx(float(F.cross_entropy(model.eval()(images), targets)), rel=1e-6)


def test_other_architectures_have_no_line():
    with pytest.raises(ValueError, match="the second model must have the first one's architecture"):
        interpolation(golden_model(), nn.Sequential(nn.Linear(2, 2)), golden_loader())


def test_interrupted_surface_keeps_its_middle(monkeypatch, tmp_path):
    class Stopped(_progress.Progress):
        def advance(self, note=""):
            super().advance(note)
            if self.done == 15:
                raise KeyboardInterrupt

    monkeypatch.setattr(_progress, "Progress", Stopped)
    found = landscape(golden_model(), golden_loader(), points=5)
    assert not found.complete and np.isfinite(found.lines).all() and np.isfinite(found.surface[2]).all() and np.isnan(found.surface[0]).all()
    content = json.loads(found.save(tmp_path)[0].read_text())
    assert content["surface"][0][0] == "nan" and not content["complete"]


def test_from_the_options_of_the_command_line(tmp_path):
    options = Options(model="vit_nano_patch4_32", other="vit_nano_patch4_32", samples=10, points=3, line_points=3, device="cpu")
    names = [path.name for path in run(options).save(tmp_path)]
    assert names == ["landscape.json", "landscape.png", "landscape_3d.png", "interpolation.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"points": 4}, "points must be odd"), ({"norm": "layer"}, "norm must be one of filter, none"), ({"loader": []}, "at least one sample")],
)
def test_bad_input_is_told(change, message):
    arguments = {"loader": golden_loader(), "points": 3, **change}
    with pytest.raises(ValueError, match=message):
        landscape(golden_model(), **arguments)


@pytest.mark.parametrize("done", [0, 3, 11])
def test_interrupted_before_the_surface_is_drawn_without(done, tmp_path):
    lines, surface = np.full((2, 5), np.nan), np.full((5, 5), np.nan)
    lines.flat[:done] = 1.0
    surface.flat[12 : 12 + max(0, done - 10)] = 1.0
    found = Landscape(steps=[-1.0, -0.5, 0.0, 0.5, 1.0], lines=lines, surface=surface, complete=False)
    assert {path.name for path in found.save(tmp_path)} - {"landscape_3d.png"} == {"landscape.json", "landscape.png"}
