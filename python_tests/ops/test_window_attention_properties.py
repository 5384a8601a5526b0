"""What holds for every input of window attention, on every backend: drawn at random, shrunk when it fails."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import assert_close

from vtkernels._core import testing
from vtkernels.ops.window_attention.op import OP

pytestmark = pytest.mark.parametrize("backend", OP.backend_names)
drawn = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Geometry:
    window: tuple[int, int]
    shift: tuple[int, int]
    grid: tuple[int, int]
    missing: tuple[int, int]  # rows and columns the last windows lack
    batch: int
    heads: int

    @property
    def size(self) -> tuple[int, int]:
        return tuple(g * w - m for g, w, m in zip(self.grid, self.window, self.missing, strict=True))


@st.composite
def geometries(draw, shifted=True, ragged=True) -> Geometry:
    window = draw(st.sampled_from([(2, 2), (3, 4), (4, 4), (5, 2), (7, 7), (9, 8)]))
    shift = tuple(draw(st.integers(0, edge - 1)) for edge in window) if shifted else (0, 0)
    missing = tuple(draw(st.integers(0, edge - 1)) for edge in window) if ragged else (0, 0)
    grid = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return Geometry(window, shift, grid, missing, draw(st.integers(1, 3)), draw(st.integers(1, 3)))


def inputs_for(backend: str, geometry: Geometry, **options) -> testing.Inputs:
    generator = torch.Generator().manual_seed(hash(geometry) % 2**31)
    span = (2 * geometry.window[0] - 1) * (2 * geometry.window[1] - 1)
    inputs = {
        "qkv": torch.randn(geometry.batch, *geometry.size, 3 * 8 * geometry.heads, generator=generator),
        "bias_table": torch.randn(span, geometry.heads, generator=generator),
        "num_heads": geometry.heads,
        "window_size": geometry.window,
        "shift_size": geometry.shift,
        "qkv_bias": torch.randn(3 * 8 * geometry.heads, generator=generator),
        **options,
    }
    reason = testing.why_not(OP.name, inputs, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return inputs


def forward(inputs: testing.Inputs, backend: str) -> torch.Tensor:
    return OP.public(**inputs, backend=backend)


def windows_of(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """[B, gh, gw, wh, ww, C] of a map the window divides, unshifted."""
    return x.unflatten(2, (geometry.grid[1], -1)).unflatten(1, (geometry.grid[0], -1)).transpose(2, 3)


def map_of(windows: torch.Tensor) -> torch.Tensor:
    return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@drawn
@given(geometry=geometries(shifted=False, ragged=False))
def test_permuted_windows_permute_the_output(backend, geometry):
    inputs = inputs_for(backend, geometry)
    rows, columns = torch.randperm(geometry.grid[0]), torch.randperm(geometry.grid[1])
    permuted = map_of(windows_of(inputs["qkv"], geometry)[:, rows][:, :, columns])
    expected = map_of(windows_of(forward(inputs, backend), geometry)[:, rows][:, :, columns])
    assert_close(forward({**inputs, "qkv": permuted}, backend), expected, 1e-6, "output")


@drawn
@given(geometry=geometries(shifted=False, ragged=False))
def test_rolling_the_map_by_a_window_rolls_the_output(backend, geometry):
    inputs = inputs_for(backend, geometry)
    rolled = forward({**inputs, "qkv": inputs["qkv"].roll(geometry.window, (1, 2))}, backend)
    assert_close(rolled, forward(inputs, backend).roll(geometry.window, (1, 2)), 1e-6, "output")


@drawn
@given(geometry=geometries())
def test_columns_of_the_table_gradient_sum_to_zero(backend, geometry):
    """Each row of dS sums to zero, and every entry of dS goes to exactly one row of the table."""
    found = testing.run_case(OP.name, inputs_for(backend, geometry), backend)["gradient of bias_table"]
    assert (found.sum(0).abs() <= 1e-5 * found.abs().sum(0) + 1e-6).all()


@drawn
@given(geometry=geometries(), shift_first=st.booleans())
def test_images_do_not_see_each_other(backend, geometry, shift_first):
    inputs = inputs_for(backend, geometry, shift_first=shift_first)
    together = testing.run_case(OP.name, inputs, backend)
    upstream = testing.upstream_for((together["output"],))[0]
    table_gradient = torch.zeros_like(together["gradient of bias_table"])
    for i in range(geometry.batch):
        alone = testing.run_case(OP.name, {**inputs, "qkv": inputs["qkv"][i : i + 1]}, backend, (upstream[i : i + 1],))
        assert_close(together["output"][i : i + 1], alone["output"], 1e-6, f"output of image {i}")
        assert_close(together["gradient of qkv"][i : i + 1], alone["gradient of qkv"], 1e-6, f"gradient of image {i}")
        table_gradient += alone["gradient of bias_table"]
    assert_close(together["gradient of bias_table"], table_gradient, 1e-5, "gradient of bias_table")


@drawn
@given(geometry=geometries(), constant=st.sampled_from([-50.0, 3.0, 200.0]))
def test_a_constant_added_to_the_table_changes_nothing(backend, geometry, constant):
    inputs = inputs_for(backend, geometry)
    moved = forward({**inputs, "bias_table": inputs["bias_table"] + constant}, backend)
    assert_close(moved, forward(inputs, backend), 2e-4, "output")


@drawn
@given(geometry=geometries(shifted=False))
def test_doubling_the_values_doubles_the_output_to_the_bit(backend, geometry):
    """Unshifted: behind the mask lie probabilities too small to keep all their bits."""
    inputs = inputs_for(backend, geometry, dropout_p=0.1, seed=4)
    factors = torch.tensor([1.0, 1.0, 2.0]).repeat_interleave(8 * geometry.heads)
    doubled = {**inputs, "qkv": inputs["qkv"] * factors, "qkv_bias": inputs["qkv_bias"] * factors}
    assert torch.equal(forward(doubled, backend), 2 * forward(inputs, backend))


@drawn
@given(geometry=geometries(), data=st.data(), cosine=st.booleans(), poison=st.sampled_from([float("nan"), float("inf")]))
def test_a_nan_stays_in_its_window(backend, geometry, data, cosine, poison):
    """Output and gradient of every other window keep each bit, whatever one token holds."""
    inputs = inputs_for(backend, geometry, logit_scale=torch.full((geometry.heads,), 5.0) if cosine else None)
    inputs = {name: value for name, value in inputs.items() if value is not None}
    row, column = (data.draw(st.integers(0, edge - 1)) for edge in geometry.size)
    channel = data.draw(st.integers(0, inputs["qkv"].shape[3] - 1))
    clean = testing.run_case(OP.name, inputs, backend)
    poisoned_qkv = inputs["qkv"].clone()
    poisoned_qkv[0, row, column, channel] = poison
    poisoned = testing.run_case(OP.name, {**inputs, "qkv": poisoned_qkv}, backend)

    padded = tuple(g * w for g, w in zip(geometry.grid, geometry.window, strict=True))

    def window_along(axis: int) -> torch.Tensor:
        position = torch.arange(geometry.size[axis])
        return (position - geometry.shift[axis]) % padded[axis] // geometry.window[axis]

    rows, columns = window_along(0), window_along(1)
    elsewhere = ((rows != rows[row])[:, None] | (columns != columns[column])[None, :]).expand(geometry.batch, -1, -1).clone()
    elsewhere[1:] = True
    for quantity in ("output", "gradient of qkv"):
        assert torch.equal(poisoned[quantity][elsewhere], clean[quantity][elsewhere]), quantity
        assert clean[quantity].isfinite().all()
    if poison != poison:
        assert poisoned["output"].isnan().any(), "a NaN must not vanish"
    # a window without padding has no part in the gradient of the padding's projection
    full = [(window_along(axis) == window_along(axis)[at]).sum() == geometry.window[axis] for axis, at in ((0, row), (1, column))]
    if all(full):
        assert_close(poisoned["gradient of qkv_bias"], clean["gradient of qkv_bias"], 1e-6, "gradient of qkv_bias")


@drawn
@given(geometry=geometries())
def test_threads_change_nothing_but_the_order_of_sums(backend, geometry):
    inputs = inputs_for(backend, geometry)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = testing.run_case(OP.name, inputs, backend)
        torch.set_num_threads(3)
        shared = testing.run_case(OP.name, inputs, backend)
    finally:
        torch.set_num_threads(threads)
    for quantity, value in alone.items():
        assert_close(shared[quantity], value, 1e-5, quantity)
