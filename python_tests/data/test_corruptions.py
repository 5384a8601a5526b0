"""Corruptions: their parameters, hand-made values, and that a seed says everything."""

import colorsys
import io

import numpy as np
import pytest

from vtkernels.data import create_dataset, create_loader

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("scipy")
corruptions = pytest.importorskip("vtkernels.data.corruptions")
corrupt = corruptions.corrupt
EVERY = pytest.mark.parametrize("name", corruptions.CORRUPTIONS + corruptions.EXTRA_CORRUPTIONS)


@pytest.fixture(scope="module")
def image():
    return create_dataset("shapes", count=1, size=32, objects=3)[0][0]


@pytest.fixture(scope="module")
def grey():
    return np.full((64, 80, 3), 128, np.uint8)


def test_there_are_fifteen_and_four():
    assert len(corruptions.CORRUPTIONS) == 15 and corruptions.CORRUPTIONS[0] == "gaussian_noise" and corruptions.CORRUPTIONS[-1] == "jpeg_compression"
    assert set(corruptions.EXTRA_CORRUPTIONS) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}


@EVERY
def test_seed_and_severity_say_everything(name, image):
    before = image.copy()
    for severity in (1, 5):
        for parameters in ("cifar", "imagenet"):
            first, again, other = (corrupt(image, name, severity, seed=seed, parameters=parameters) for seed in (1, 1, 2))
            assert first.shape == image.shape and first.dtype == np.uint8
            np.testing.assert_array_equal(first, again)
            assert not np.array_equal(first, image)
            drawn = name not in {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate"}
            assert np.array_equal(first, other) != drawn or name == "spatter"
    np.testing.assert_array_equal(image, before)


@EVERY
@pytest.mark.parametrize("size", [(17, 33), (5, 3), (1, 1)])
def test_any_size_of_image(name, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for parameters in ("cifar", "imagenet"):
        assert corrupt(image, name, 3, parameters=parameters).shape == image.shape


NOISES = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"]
MONOTONE = [*NOISES, "defocus_blur", "zoom_blur", "fog", "brightness", "contrast", "pixelate", "gaussian_blur"]


@pytest.mark.parametrize("parameters", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", MONOTONE)
def test_higher_severities_change_more(name, parameters, image):
    changes = [abs(corrupt(image, name, severity, parameters=parameters).astype(int) - image).mean() for severity in range(1, 6)]
    assert changes == sorted(changes)


@pytest.mark.parametrize(("name", "expected"), [("gaussian_noise", 0.08), ("speckle_noise", 0.15 * 128 / 255), ("shot_noise", (128 / 255 / 60) ** 0.5)])
def test_noise_has_the_stated_deviation(name, expected, grey):
    noisy = corrupt(grey, name, 1, parameters="imagenet") / 255
    # 15360 values: the deviation is known to 0.6 %
    assert abs(noisy.std() / expected - 1) < 0.03
    assert abs(noisy.mean() - 128 / 255) < 0.005


def test_impulses_are_salt_and_pepper(grey):
    noisy = corrupt(grey, "impulse_noise", 5, parameters="imagenet")
    assert set(np.unique(noisy)) == {0, 128, 255}
    assert abs((noisy == 0).mean() - 0.135) < 0.01 and abs((noisy == 255).mean() - 0.135) < 0.01
    assert ((noisy == 128).sum(axis=2) == 2).any(), "channels are hit independently"


@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_hsv_corruptions_equal_colorsys(name):
    pixels = np.array([[[10, 200, 60], [0, 0, 0], [90, 90, 90], [255, 255, 255], [255, 1, 1], [30, 20, 250]]], np.uint8)
    for severity in range(1, 6):
        expected = []
        for pixel in pixels[0] / 255:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            if name == "brightness":
                value = min(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 1)
            else:
                factor, shift = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
                saturation = min(saturation * factor + shift, 1)
            expected.append([int(channel * 255 + 1e-3) for channel in colorsys.hsv_to_rgb(hue, saturation, value)])
        np.testing.assert_array_equal(corrupt(pixels, name, severity, parameters="imagenet")[0], expected)


def test_contrast_by_hand():
    image = np.array([[[0, 50, 100], [200, 50, 120]]], np.uint8)
    # the means are 100, 50 and 110; two fifths of the distances are left
    np.testing.assert_array_equal(corrupt(image, "contrast", 1, parameters="imagenet"), [[[60, 50, 106], [140, 50, 114]]])


def test_pixelate_and_jpeg_are_pillows(image):
    small = Image.fromarray(image).resize((int(32 * 0.3), int(32 * 0.3)), Image.BOX).resize((32, 32), Image.BOX)
    np.testing.assert_array_equal(corrupt(image, "pixelate", 4, parameters="imagenet"), np.asarray(small))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=58)
    np.testing.assert_array_equal(corrupt(image, "jpeg_compression", 3), np.asarray(Image.open(file)))


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "elastic_transform"])
def test_blurs_leave_a_plain_image_alone(name, grey):
    for severity in (1, 5):
        assert abs(corrupt(grey, name, severity, parameters="imagenet").astype(int) - 128).max() <= 1


def test_small_images_take_cifars_parameters(image):
    np.testing.assert_array_equal(corrupt(image, "contrast", 2), corrupt(image, "contrast", 2, parameters="cifar"))
    large = np.tile(image, (3, 1, 1))
    np.testing.assert_array_equal(corrupt(large, "contrast", 2), corrupt(large, "contrast", 2, parameters="imagenet"))


def test_frost_takes_photographs(grey):
    ice = np.full((500, 600, 3), 100, np.uint8)
    frosted = corrupt(grey, "frost", 2, parameters="imagenet", frost_photographs=[ice])
    assert set(np.unique(frosted)) == {int(0.8 * 128 + 0.6 * 100)}
    with pytest.raises(ValueError, match="frost_photographs must be RGB and cover"):
        corrupt(grey, "frost", 2, parameters="cifar", frost_photographs=[ice[:300]])


def test_corrupted_sets_are_sets(image):
    clean = create_dataset("shapes", count=6, size=32)
    noisy = corruptions.Corrupted(clean, "gaussian_noise", 3, seed=5)
    assert noisy.classes == clean.classes and noisy[2][1] == clean[2][1]
    np.testing.assert_array_equal(noisy[2][0], noisy[2][0])
    difference = [noisy[index][0].astype(int) - clean[index][0] for index in (0, 1)]
    assert not np.array_equal(*difference), "each image has noise of its own"
    one, two = (next(iter(create_loader(noisy, 6, workers=workers)))[0] for workers in (0, 1))
    assert one.equal(two)


def test_impossible_corruptions(image):
    for arguments, message in (((image, "rain", 1), "gaussian_noise, shot_noise"), ((image, "fog", 0), "1, 2, 3, 4 or 5"), ((image / 255, "fog", 1), "uint8")):
        with pytest.raises(ValueError, match=message):
            corrupt(*arguments)
    with pytest.raises(ValueError, match="1, 2, 3, 4 or 5"):
        corruptions.Corrupted(create_dataset("shapes", count=1), "fog", 6)
