"""Every operation against Pillow, to the pixel."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from images import pillow, random_image, require_imgops
from optional import peer

from vtkernels.data import augment

CASES = 150


@pytest.fixture(autouse=True)
def extension():
    require_imgops()


def factor(rng):
    return rng.choice([0, 0.1, 0.5, 1, 1.9, -1e4, 1e8, rng.uniform(0, 2), rng.uniform(-2, 4)])


def number(*choices, low, high):
    return lambda rng: rng.choice([*choices, rng.uniform(low, high)])


def matrix(rng):
    values = [rng.uniform(-2, 2) if rng.random() < 0.8 else 0.0 for _ in range(6)]
    if rng.random() < 0.2:
        values[1] = values[3] = 0.0
    # beyond what Pillow does in fixed point
    values[2] *= rng.choice([10, 10, 1e5])
    return values


POINT = {
    "autocontrast": None,
    "equalize": None,
    "invert": None,
    "flip": None,
    "posterize": lambda rng: rng.randrange(9),
    "solarize": lambda rng: rng.choice([rng.randrange(258), rng.uniform(0, 256)]),
    "solarize_add": lambda rng: rng.randrange(-130, 130),
    "color": factor,
    "contrast": factor,
    "brightness": factor,
    "sharpness": factor,
    "gaussian_blur": number(0, 0.1, 0.5, 1, 2, 300, 1000, low=0, high=20),
    "cutout": lambda rng: [rng.randrange(-20, 90) for _ in range(2)] + [90, 90],
}
GEOMETRIC = {
    "rotate": number(0, 30, 45, 90, 180, 270, -90, 360, 1e8, low=-720, high=720),
    "shear_x": number(0, 0.3, -0.3, 40, -1e8, low=-3, high=3),
    "shear_y": number(0, 0.3, -0.3, 40, -1e8, low=-3, high=3),
    "translate_x": number(0, 1, -7, 200, 1e8, low=-60, high=60),
    "translate_y": number(0, 1, -7, 200, -1e8, low=-60, high=60),
    "affine": matrix,
}


def steps_of(name, drawing, rng):
    values = [] if drawing is None else drawing(rng)
    return [(name, *(values if isinstance(values, list) else [values]))]


def check(array, steps, **settings):
    before = array.copy()
    found, expected = augment.apply(array, steps, **settings), pillow(array, steps, settings.get("filter", "bilinear"), settings.get("fill", (0, 0, 0)))
    wrong = int((found != expected).sum())
    assert wrong == 0, f"{steps} {settings} of {array.shape}: {wrong} values differ"
    assert (array == before).all()


@pytest.mark.parametrize("name", POINT)
def test_point(name):
    rng = random.Random(name)
    for _ in range(CASES):
        check(random_image(rng), steps_of(name, POINT[name], rng))


@pytest.mark.parametrize("filter", ("nearest", "bilinear", "bicubic"))
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric(name, filter):
    rng = random.Random(name + filter)
    for _ in range(CASES):
        fill = tuple(rng.randrange(256) for _ in range(3)) if rng.random() < 0.5 else (0, 0, 0)
        check(random_image(rng), steps_of(name, GEOMETRIC[name], rng), filter=filter, fill=fill)


def test_lists_of_steps():
    rng = random.Random(0)
    every = POINT | GEOMETRIC
    for _ in range(CASES):
        steps = [step for name in rng.choices(list(every), k=rng.randrange(4)) for step in steps_of(name, every[name], rng)]
        check(random_image(rng), steps)


@pytest.mark.parametrize("filter", ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"))
def test_resize(filter):
    Image = peer("PIL.Image")
    rng = random.Random(filter)
    for _ in range(CASES):
        array = random_image(rng)
        size = tuple(rng.choice([1, 2, 3, 7, 16, 32, 50, side, max(1, side - 1), 50 * min(side, 4)]) for side in array.shape[:2])
        expected = np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling[filter.upper()]))
        assert (augment.resize(array, size, filter) == expected).all(), (array.shape, size)


@pytest.mark.parametrize("isa", ("portable", "avx2", "avx512"))
def test_every_instruction_set(isa):
    """Which one runs is decided once in a process."""
    tests = [f"{__file__}::{name}" for name in ("test_lists_of_steps", "test_resize", "test_point[color]")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    found = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ | {"VTKERNELS_ISA": isa}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_goldens():
    y, x, c = np.indices((4, 4, 3))
    array = (5 * (12 * y + 3 * x + c) % 256).astype(np.uint8)
    goldens = {
        ("autocontrast",): (85, 84, 85),
        ("equalize",): (75, 80, 85),
        ("color", 1.9): (71, 80, 90),
        ("contrast", 0.1): (112, 113, 113),
        ("brightness", 1.5): (112, 120, 127),
        ("sharpness", 1.9): (75, 80, 85),
        ("posterize", 4): (64, 80, 80),
    }
    for step, pixel in goldens.items():
        assert tuple(augment.apply(array, [step])[1, 1]) == pixel, step
    assert augment.apply(np.full((1, 1, 3), (225, 230, 235), np.uint8), [("solarize", 128)]).tolist() == [[[30, 25, 20]]]
    assert not augment.apply(array, [("posterize", 0)]).any()


def test_views_need_no_copy_and_may_have_any_strides():
    array = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    steps = [("rotate", 10), ("equalize",), ("sharpness", 1.5)]
    views = (array[3:20, 5:17], array[::-1], array[:, ::-1], array[::2, ::3], array.transpose(1, 0, 2), array[:, :, ::-1], array[:1, ::2][:, :1])
    for view in views:
        assert (augment.apply(view, steps) == augment.apply(view.copy(), steps)).all()
        assert (augment.resize(view, (9, 11)) == augment.resize(view.copy(), (9, 11))).all()
        assert (augment.normalize(view) == augment.normalize(view.copy())).all()
    part = augment.crop(array, 3, 5, 17, 12)
    assert np.shares_memory(part, array)
    assert (part == array[3:20, 5:17]).all()
    assert augment.apply(array[:, :, :1], steps).shape == (40, 30, 1)


def test_normalize_is_torchvisions():
    functional = peer("torchvision.transforms.functional")
    rng = random.Random(0)
    for _ in range(50):
        array = random_image(rng, color=True)
        expected = functional.normalize(functional.to_tensor(array), augment.IMAGENET_MEAN, augment.IMAGENET_STD).numpy()
        out = np.full_like(expected, np.nan)
        assert augment.normalize(array, out=out) is out
        assert (out == expected).all()
    assert augment.normalize(random_image(rng, color=False), 0.5, 0.5).shape[0] == 1


def test_pad_and_the_shorter_side():
    array = np.ones((2, 3, 3), np.uint8)
    assert augment.pad(array, 2, (7, 8, 9))[0, 0].tolist() == [7, 8, 9]
    assert augment.pad(array, 2).sum() == 18
    assert augment.resize(np.zeros((40, 60, 3), np.uint8), 20).shape == (20, 30, 3)
    assert augment.resize(np.zeros((60, 40), np.uint8), np.int64(20)).shape == (30, 20)


IMAGE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: augment.apply(IMAGE / 255, []), "dtype uint8, got float64; try"),
        (lambda: augment.apply(IMAGE.transpose(2, 0, 1), []), r"shape \[H, W, 3\] or \[H, W\], got \[3, 4, 5\]; try image.transpose"),
        (lambda: augment.apply(np.zeros((4, 5, 4), np.uint8), []), r"got \[4, 5, 4\]"),
        (lambda: augment.apply(IMAGE[:0], []), r"have pixels, got \[0, 5, 3\]"),
        (lambda: augment.apply(peer("PIL.Image").new("P", (4, 4)), []), "mode RGB or L, got P; try image.convert"),
        (lambda: augment.apply(IMAGE, [("blur", 1)]), "one of autocontrast, .*got 'blur'"),
        (lambda: augment.apply(IMAGE, [("posterize", 9)]), "0 to 8 bits, got 9"),
        (lambda: augment.apply(IMAGE, [("color",)]), r"1 finite numbers, got \[\]"),
        (lambda: augment.apply(IMAGE, [("color", float("nan"))]), "finite"),
        (lambda: augment.apply(IMAGE, [("rotate", 3)], filter="lanczos"), "one of nearest, bilinear, bicubic, got 'lanczos'"),
        (lambda: augment.apply(IMAGE, [], fill=(1, 2)), "fill must"),
        (lambda: augment.resize(IMAGE, (0, 4)), "positive"),
        (lambda: augment.pad(IMAGE, -1), "margin must be at least 0, got -1; try crop"),
        # with its border more than a 32-bit offset reaches
        (lambda: augment.apply(np.broadcast_to(IMAGE[:1, :1, 0], (1 << 27, 1)), []), "have at most"),
        (lambda: augment.crop(IMAGE, 2, 2, 3, 3), "try pad"),
        (lambda: augment.normalize(IMAGE, out=np.empty((3, 5, 4), np.float32)), r"float32 array \[3, 4, 5\], got float32 \[3, 5, 4\]"),
        (lambda: augment.normalize(IMAGE, std=(1, 0, 1)), "std not 0"),
        (lambda: augment.normalize(IMAGE, out=np.broadcast_to(np.float32(0), (3, 4, 5))), "writeable contiguous"),
        (lambda: augment.normalize((out := np.zeros((3, 4, 5), np.float32)).view(np.uint8).reshape(-1, 5, 3)[:4], out=out), "elsewhere than the image"),
        (lambda: augment.apply(torch.zeros(3, 4, 5, dtype=torch.uint8), []), "try image.transpose"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_threads_do_not_disturb_each_other():
    rng = random.Random(0)
    every = POINT | GEOMETRIC
    calls = [(random_image(rng), [step for name in rng.choices(list(every), k=4) for step in steps_of(name, every[name], rng)]) for _ in range(200)]
    alone = [augment.apply(*call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: augment.apply(*call), calls))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


def test_without_the_extension():
    code = "import sys; sys.modules['vtkernels._imgops'] = None\nimport vtkernels\nfrom vtkernels.data import augment\naugment.AugMix()"
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "ImportError: vtkernels.data.augment: expected the extension vtkernels._imgops" in found.stderr
    assert "VTKERNELS_BUILD=cpu" in found.stderr
