"""Segmenters and detectors on trunks of several kinds: shapes, gradients, frozen trunks, odd images."""

import copy

import pytest
import torch

import vtkernels as vt
from vtkernels.models import Detector, Segmenter, boxes_of

# maps of halving size, of one size, and of a CNN
TRUNKS = ("swin_nano_patch4_window4_32", "vit_nano_patch4_32", "resnet_nano")


def trunk(name: str = TRUNKS[0], size: int | tuple[int, int] = 32, **options) -> torch.nn.Module:
    return vt.create_model(name, features_only=True, img_size=size, **options)


def segmenter(name: str = TRUNKS[0], size: int | tuple[int, int] = 32, **options) -> Segmenter:
    return Segmenter(trunk(name, size), 5, channels=16, **options)


def detector(name: str = TRUNKS[0], size: int | tuple[int, int] = 32, **options) -> Detector:
    return Detector(trunk(name, size), 5, **{"channels": 16, "depth": 1, "finest": 4, "extra": 1, **options})


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("head", ["fcn", "upernet"])
def test_segmenters(name, head):
    model = segmenter(name, (32, 64), head=head, auxiliary=True)
    images = torch.randn(2, 3, 32, 64)
    logits, auxiliary = model.forward_both(images)
    assert logits.shape == auxiliary.shape == (2, 5, 32, 64)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert [key for key, param in model.named_parameters() if param.grad is None] == []
    model.eval()
    assert model.predict(images).shape == (2, 32, 64)
    torch.testing.assert_close(model(images), model.forward_both(images)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", TRUNKS)
def test_detectors(name):
    model = detector(name, (32, 64))
    cells = model(torch.randn(2, 3, 32, 64))
    count = sum((32 // stride) * (64 // stride) for stride in model.strides)
    assert cells.logits.shape == (2, count, 5) and cells.distances.shape == (2, count, 4) and cells.centers.shape == (count, 2)
    assert (cells.distances > 0).all() and cells.centers[:, 0].max() < 64 and cells.centers[:, 1].max() < 32
    sum(part.square().mean() for part in cells[:3]).backward()
    assert [key for key, param in model.named_parameters() if param.grad is None] == []


def test_one_image_and_a_classifier_as_trunk():
    classifier = vt.create_model(TRUNKS[0], num_classes=7)
    model = Segmenter(classifier, 3, channels=16).train()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert not any("head" in key for key in model.backbone.state_dict())


def test_half_precision_and_no_images():
    with torch.autocast("cpu", torch.bfloat16):
        cells = detector()(torch.randn(1, 3, 32, 32))
        assert cells.distances.dtype == torch.float32 and segmenter()(torch.randn(1, 3, 32, 32)).isfinite().all()
    assert boxes_of(detector()(torch.randn(0, 3, 32, 32)), (32, 32)) == []


def test_boxes_of_cells():
    model = detector().eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    (found,) = model.predict(torch.randn(1, 3, 32, 32), most=7, least_score=0.0)
    assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) == 7
    assert (found["scores"].diff() <= 0).all() and found["boxes"].min() >= 0 and found["boxes"].max() <= 32 and found["labels"].max() < 5
    (none,) = model.predict(torch.randn(1, 3, 32, 32), least_score=1.0)
    assert none["boxes"].shape == (0, 4)


@pytest.mark.parametrize("make", [segmenter, detector])
def test_a_frozen_trunk_stays_in_evaluation_mode(make):
    model = make(frozen=True).train()
    assert model.training and not any(module.training for module in model.backbone.modules())
    assert not any(param.requires_grad for param in model.backbone.parameters())
    assert all(param.requires_grad for key, param in model.named_parameters() if not key.startswith("backbone."))


def test_stochastic_depth_of_frozen_trunks_is_off():
    images = torch.randn(4, 3, 32, 32)
    for frozen in (True, False):
        model = Segmenter(trunk(drop_path=0.9), 3, channels=16, frozen=frozen).train()
        same = torch.equal(model.backbone(images)[-1], model.backbone(images)[-1])
        assert same == frozen


@pytest.mark.parametrize("make", [segmenter, detector])
def test_groups_of_layers(make):
    model = make()
    names = [name for group in model.layer_groups() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    groups = vt.optim.groups.param_groups(model, weight_decay=0.1, layer_decay=0.5)
    scales = {id(param): group["lr_scale"] for group in groups for param in group["params"]}
    assert scales[id(next(model.head.parameters() if make is segmenter else model.pyramid.parameters()))] == 1.0
    assert scales[id(next(model.backbone.parameters()))] < 0.5


@pytest.mark.parametrize("make", [segmenter, detector])
def test_compiled_and_checkpointed(make, fresh_compiler):
    model, images = make().eval(), torch.randn(2, 3, 32, 32)

    def first(found):
        return found if isinstance(found, torch.Tensor) else found.logits

    expected = first(model(images))
    torch.testing.assert_close(first(torch.compile(model, backend="aot_eager", fullgraph=True)(images)), expected, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(model).train()
    again.set_grad_checkpointing()
    first(again(images)).square().mean().backward()
    assert again.backbone.model.grad_checkpointing and next(again.backbone.parameters()).grad is not None


def test_wrong_arguments():
    with pytest.raises(ValueError, match="head must be one of fcn, upernet"):
        segmenter(head="uper")
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        Segmenter(trunk(), 1)
    with pytest.raises(ValueError, match="finest must be at most the trunk's coarsest cells, 8 pixels"):
        detector(finest=16)
