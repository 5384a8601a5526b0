"""The parts that corruptions are made of, against values found by hand."""

import numpy as np
import pytest

pytest.importorskip("scipy")
filters = pytest.importorskip("vtkernels.data.corruptions._filters")


class Ones:
    """A generator whose uniform numbers are all the upper end."""

    def uniform(self, low, high, shape):
        return np.full(shape, high)


def test_plasma_by_hand():
    # centre 0 + 100 * 100; edges (centre + centre) / 4 + 100 * 100; the corner stays 0
    np.testing.assert_allclose(filters.plasma(2, 3.0, Ones()), [[0, 1], [1, 10000 / 15000]])


def test_plasma_is_rougher_for_smaller_decay():
    def roughness(decay):
        field = filters.plasma(64, decay, np.random.default_rng(1))
        assert field.min() == 0 and field.max() == 1
        return abs(np.diff(field, axis=0)).mean()

    assert roughness(1.4) > 2 * roughness(2.5)


@pytest.mark.parametrize(("radius", "reach"), [(0.3, 8), (3, 8), (8, 8), (10, 10)])
def test_disks(radius, reach):
    kernel = filters.disk(radius, 0.5)
    assert kernel.shape == (2 * reach + 1,) * 2 and abs(kernel.sum() - 1) < (1e-12 if radius < reach else 0.02)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-15)
    along = np.arange(-reach, reach + 1)
    softened = 1.5 if reach == 8 else 3
    assert not kernel[np.hypot(along[:, None], along) > radius + softened].any()
    # far inside the rim all weights are one over the area
    inside = np.hypot(along[:, None], along) <= radius - softened
    np.testing.assert_allclose(kernel[inside], 1 / (np.hypot(along[:, None], along) <= radius).sum())


def test_motion_smears_to_one_side():
    point = np.zeros((9, 21))
    point[4, 15] = 1
    weights = np.exp(-0.5 * (np.arange(7) / 2) ** 2)
    expected = np.zeros_like(point)
    expected[4, 15 - np.arange(7)] = weights / weights.sum()
    np.testing.assert_allclose(filters.motion(point, 3, 2, 0.0), expected, atol=1e-15)
    np.testing.assert_allclose(filters.motion(point.T, 3, 2, 90.0), expected.T, atol=1e-15)


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (1, 1)])
@pytest.mark.parametrize("factor", [1.0, 1.01, 1.3, 4.0])
def test_zoom_keeps_size_and_middle(size, factor):
    ramp = np.linspace(0, 1, size[1])[None, :] * np.ones(size)
    zoomed = filters.zoomed(ramp, factor)
    assert zoomed.shape == size and abs(zoomed.mean() - ramp.mean()) < 0.05
    if factor == 1:
        np.testing.assert_allclose(zoomed, ramp)
    if min(size) > 1:
        np.testing.assert_allclose(np.ptp(zoomed) * factor, 1, atol=0.15)


def test_edges_are_thin_and_strong():
    step = np.zeros((12, 12))
    step[:, 6:] = 200
    edges = filters.canny(step, 50, 150)
    assert (edges.sum(axis=1) == 1).all() and set(np.flatnonzero(edges.any(axis=0))) <= {5, 6}
    assert not filters.canny(step / 10, 50, 150).any(), "a faint step is no edge"
    # as faint as this one only where it goes on from a strong one
    step[:, 6:] = 20
    step[4:, 6:] = 200
    assert filters.canny(step, 50, 150)[:3].any() and not filters.canny(step[:3], 50, 150).any()


def test_equalised_values_are_spread_evenly():
    skewed = (np.linspace(0, 1, 4096).reshape(64, 64) ** 3 * 80).astype(np.uint8)
    even = filters.equalised(skewed)
    order = np.argsort(skewed.reshape(-1), kind="stable")
    assert (np.diff(even.reshape(-1)[order].astype(int)) >= 0).all() and even.min() == 0 and even.max() == 255
    assert abs(np.median(even[skewed > 0]) - 160) < 40
    assert (filters.equalised(np.full((4, 4), 7, np.uint8)) == 7).all()
