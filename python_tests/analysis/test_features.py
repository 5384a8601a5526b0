"""Features of known geometry, and what t-SNE makes of classes that lie apart."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from optional import peer
from torch import nn

import vtkernels as vt
from vtkernels.analysis import features
from vtkernels.analysis._model import penultimate
from vtkernels.analysis._toy import fit
from vtkernels.losses import CenterLoss


@pytest.fixture(autouse=True)
def _few_iterations(monkeypatch):
    monkeypatch.setattr(features, "ITERATIONS", 300)


def clusters(distance: float, count: int = 20, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Points around the corners of a simplex."""
    draw = np.random.RandomState(0)
    targets = np.arange(count * classes) % classes
    return distance * np.eye(classes, 8)[targets] + draw.randn(len(targets), 8), targets


def test_ratio_of_known_distances():
    points = np.array([[0.0, 1], [0, -1], [10, 1], [10, -1]])
    targets = np.array([3, 3, 5, 5])
    assert features.distance_ratio(points, targets) == pytest.approx(0.1)
    # neither scale nor place nor rotation of the features counts
    turned = points @ np.array([[0.6, -0.8], [0.8, 0.6]]) * 7 + 3
    assert features.distance_ratio(turned, targets) == pytest.approx(0.1)
    assert features.same_class_share(points, targets) == 1.0


def test_classes_far_apart_stay_apart_in_the_picture():
    far, targets = clusters(30.0)
    near, _ = clusters(0.0)
    points, kept = features.embed(far)
    assert points.shape == (60, 2) and kept > 0.85
    assert features.distance_ratio(points, targets) < 0.4 < features.distance_ratio(near, targets)
    assert features.same_class_share(points, targets) == 1.0


def test_same_seed_same_points():
    points, _ = clusters(5.0)
    np.testing.assert_array_equal(features.embed(points, seed=3)[0], features.embed(points, seed=3)[0])


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "swin_nano_patch4_window4_32", "resnet_nano", "efficientnet_nano", "nasnet_nano"])
def test_features_are_what_the_classifier_sees(name):
    model = vt.create_model(name, num_classes=4).eval()
    with torch.no_grad():
        found, logits = penultimate(model, torch.randn(2, 3, 32, 32))
        head = model.get_submodule(model.classifiers[0])
        torch.testing.assert_close(head(found), logits)
    assert found.shape == (2, model.head_width)


def test_features_of_other_libraries():
    model = peer("timm").create_model("resnet10t", num_classes=4)
    assert penultimate(model, torch.randn(2, 3, 32, 32))[0].shape == (2, 512)
    assert penultimate(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(2, 3, 2, 2))[0].shape == (2, 12)


def data(count: int = 24, classes: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    targets = torch.arange(count) % classes
    return list(zip((torch.randn(count, 6) + 4 * torch.eye(6)[targets]).split(10), targets.split(10), strict=True))


def test_two_models_side_by_side(tmp_path):
    """The second one draws classes together, as center loss does."""
    loose, tight = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    with torch.no_grad():
        for net in (loose, tight):
            net[0].weight.copy_(torch.eye(6))
        tight[0].weight.copy_(torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0])))
    result = features.compare({"without center loss": loose, "with center loss": tight}, data(), ["a", "b", "c"])
    assert result.complete and result.embeddings[1].ratio < result.embeddings[0].ratio
    assert {path.name for path in result.save(tmp_path)} == {"features.json", "features.png"}
    assert "with center loss" in result.summary()


def test_run_on_digits(tmp_path):
    options = features.Options(model="vit_nano_patch4_32", samples=40, other="vit_nano_patch4_32", device="cpu")
    result = features.run(options)
    assert [one.label for one in result.embeddings] == ["first model", "second model"]
    assert len(result.targets) == 40 and len(result.classes) == 10


def test_center_loss_draws_classes_together():
    torch.manual_seed(0)
    images, labels = (torch.cat(parts) for parts in zip(*data(90), strict=True))
    start, ratios = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 3)), []
    for pull in (None, CenterLoss(3, 16, weight=0.02)):
        torch.manual_seed(1)
        net = fit(copy.deepcopy(start), images, labels, updates=400, lr=1e-2, of_features=pull)
        ratios.append(features.distance_ratio(net[:3](images).detach().numpy(), labels.numpy()))
    assert ratios[1] < 0.5 * ratios[0]


def test_with_and_without_center_loss():
    options = features.Options(model="vit_nano_patch4_32", fields=("depth=1",), samples=30, center_loss=0.01, updates=2, device="cpu")
    without, drawn = features.run(options).embeddings
    assert [without.label, drawn.label] == ["without center loss", "center loss of weight 0.01"] and without.ratio != drawn.ratio
    with pytest.raises(ValueError, match="other must be left out"):
        features.run(replace(options, other="vit_nano_patch4_32"))
    with pytest.raises(ValueError, match="center_loss must be positive"):
        features.run(replace(options, center_loss=0.0))


def test_bad_input_is_told():
    net = nn.Linear(6, 3)
    with pytest.raises(ValueError, match="two classes"):
        features.compare({"one": net}, data(classes=1))
    with pytest.raises(ValueError, match="at least one image"):
        features.compare({"one": net}, [])
    with pytest.raises(ValueError, match="at least 5"):
        features.compare({"one": net}, data(4))
    with pytest.raises(ValueError, match="differ between images"):
        features.compare({"one": net}, [(torch.ones(12, 6), torch.arange(12) % 3)])
    with pytest.raises(ValueError, match="class numbers"):
        features.compare({"one": net}, [(torch.ones(12, 6), torch.ones(12, 3))])
    with pytest.raises(ValueError, match="Linear layer"):
        features.compare({"one": nn.Flatten()}, data())
    nan = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    nn.init.constant_(nan[0].bias, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        features.compare({"one": nan}, data())
