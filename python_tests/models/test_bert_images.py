"""A BERT whose words are the grey levels of an image's cells."""

import pytest
import torch

from vtkernels.models import create_model
from vtkernels.models.bert_images import POSITIONS


def small(**options):
    return create_model("bert_grey_nano_patch4_32", num_classes=10, img_size=8, levels=4, **options).eval()


def test_cells_become_words_by_their_grey():
    images = torch.zeros(1, 3, 8, 8)
    # four levels: below -2, to 0, to 2, above
    for (row, column), grey in {(0, 0): -3.0, (0, 1): -1.0, (1, 0): 1.0, (1, 1): 3.0}.items():
        images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = grey
    # colours of one mean are one grey
    images[:, 0, :4, 4:] += 0.3
    images[:, 1, :4, 4:] -= 0.3
    # the word before them stands for the whole
    assert small().words(images).tolist() == [[4, 0, 1, 2, 3]]


def test_the_encoder_is_berts():
    model = small()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told = model.bert(model.words(images))
    torch.testing.assert_close(model.forward_features(images), told.words, rtol=0, atol=0)
    torch.testing.assert_close(model(images), model.head(told.pooled), rtol=0, atol=0)


def test_pixels_that_are_no_numbers_are_words_still():
    assert small().words(torch.full((1, 3, 8, 8), float("nan"))).max() <= 4


def test_positions_are_carried_over_to_larger_images(tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / "small.pth")
    larger = create_model("bert_grey_nano_patch4_32", num_classes=10, img_size=16, levels=4, checkpoint=tmp_path / "small.pth")
    assert larger.load_report.resized == [POSITIONS]
    assert larger.load_report.complete
    torch.testing.assert_close(larger.state_dict()[POSITIONS][0], model.state_dict()[POSITIONS][0])


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="img_size must be multiples of patch_size=4, got"):
        create_model("bert_grey_nano_patch4_32", img_size=30)
    with pytest.raises(ValueError, match="levels must be 2 or more"):
        create_model("bert_grey_nano_patch4_32", levels=1)
