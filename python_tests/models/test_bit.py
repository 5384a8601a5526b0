"""BiT against timm, from timm's weights and from files laid out as the published ones."""

import numpy as np
import pytest
import torch
from models.zoo import assert_same_function, images
from optional import peer

from vtkernels.models import create_model


@pytest.fixture
def theirs():
    timm = peer("timm")
    model = timm.create_model("resnetv2_50x1_bit")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.rand(parameter.shape, generator=generator)
    return model


def test_timm(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_model("resnetv2_50x1_bit", checkpoint=tmp_path / "timm.pth")
    assert ours.load_report.complete
    assert_same_function(ours, theirs, images(2, (64, 96)))


def test_published_layout(theirs, tmp_path):
    """A file with the published names, which timm reads its own way."""
    arrays = {}
    rename = {"a": "1", "b": "2", "c": "3"}
    kernel = lambda conv: conv.weight.detach().permute(2, 3, 1, 0).numpy() + 0.01  # noqa: E731
    arrays["resnet/root_block/standardized_conv2d/kernel"] = kernel(theirs.stem.conv)
    arrays["resnet/head/conv2d/kernel"], arrays["resnet/head/conv2d/bias"] = kernel(theirs.head.fc), theirs.head.fc.bias.detach().numpy()
    norms = {"resnet/group_norm": theirs.norm}
    for stage, blocks in enumerate(theirs.stages):
        for index, block in enumerate(blocks.blocks):
            prefix = f"resnet/block{stage + 1}/unit{index + 1:02d}"
            for part, number in rename.items():
                arrays[f"{prefix}/{part}/standardized_conv2d/kernel"] = kernel(getattr(block, f"conv{number}"))
                norms[f"{prefix}/{part}/group_norm"] = getattr(block, f"norm{number}")
            if block.downsample is not None:
                arrays[f"{prefix}/a/proj/standardized_conv2d/kernel"] = kernel(block.downsample.conv)
    for name, norm in norms.items():
        arrays[f"{name}/gamma"], arrays[f"{name}/beta"] = norm.weight.detach().numpy() * 2, norm.bias.detach().numpy() + 0.1
    np.savez(tmp_path / "bit.npz", **arrays)
    theirs.load_pretrained(str(tmp_path / "bit.npz"))
    ours = create_model("resnetv2_50x1_bit", checkpoint=tmp_path / "bit.npz")
    assert ours.load_report.complete, ours.load_report
    assert_same_function(ours, theirs, images(2, (64, 96)))


def test_pooling_pads_with_zeros():
    """Where all is negative the border of the pooled stem is 0, which a padded max-pool would not give."""
    stem = create_model("bit_nano").stem
    pooled = stem["pool"](stem["pad"](torch.full((1, 1, 8, 8), -1.0)))
    assert pooled.shape == (1, 1, 4, 4)
    assert (pooled[0, 0, 0] == 0).all() and (pooled[0, 0, :, 0] == 0).all() and (pooled[0, 0, 1:, 1:] == -1).all()


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("resnetv2_50x1_bit", depths=(1, 1, 1, 1))
    assert model.head["fc"].weight.std().item() == pytest.approx(0.01, rel=0.02)
    conv = model.stages[3]["blocks"][0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.02)
    model.reset_classifier(7)
    assert (model.head["fc"].bias == 0).all() and model.head["fc"].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_impossible_configurations():
    with pytest.raises(ValueError, match="channels must be a multiple of groups=5, got 8; choose fewer groups"):
        create_model("bit_nano", groups=5)
