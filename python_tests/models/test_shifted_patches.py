"""Shifted patch tokenization against its definition, pixel by pixel."""

import pytest
import torch
from models.zoo import images

from vtkernels.layers import Patches, ShiftedPatches


def pixel(x, channel, row, column):
    inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
    return x[0, channel, row, column] if inside else x.new_zeros(())


@pytest.mark.parametrize(("patch", "size"), [(4, (8, 12)), (2, (4, 6)), (3, (6, 6)), (1, (2, 3))])
def test_each_patch_sees_its_surroundings(patch, size):
    layer = ShiftedPatches(patch, 3, 7).double()
    torch.nn.init.normal_(layer.merging[1].weight)
    torch.nn.init.normal_(layer.merging[1].bias)
    x = images(1, size, dtype=torch.float64)
    found = layer(x)
    assert found.shape == (1, size[0] // patch, size[1] // patch, 7)
    # pixels of the shifted copies lie half a patch up-left, up-right, down-left and down-right of the patch's own
    half = patch // 2
    moves = [(0, 0), (-half, -half), (-half, half), (half, -half), (half, half)]
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            values = [
                pixel(x, channel, row * patch + i + down, column * patch + j + right)
                for i in range(patch)
                for j in range(patch)
                for down, right in moves
                for channel in range(3)
            ]
            torch.testing.assert_close(found[0, row, column], layer.merging[2](layer.merging[1](torch.stack(values))))


def test_names_and_size():
    layer = ShiftedPatches(4, 3, 192)
    assert [key for key, _ in layer.named_parameters()] == ["merging.1.weight", "merging.1.bias", "merging.2.weight", "merging.2.bias"]
    assert layer(images(0)).shape == (0, 8, 8, 192)


def test_patches_must_fit():
    with pytest.raises(ValueError, match=r"rows and columns must be multiples of patch_size=4, got \(32, 30\); pad or resize"):
        Patches(4)(images(1, (32, 30)))
