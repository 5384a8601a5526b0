"""Pairs for dense relative localisation against known answers, a peer that indexes literally, and bad input."""

import pytest
import torch
from torch import Tensor

import vtkernels as vt
from vtkernels._core import testing
from vtkernels._core.philox import philox

BACKENDS = ("cpu", "reference")


def on_backends(function):
    return pytest.mark.parametrize("backend", BACKENDS)(function)


def pairs_of(backend: str, features: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    reason = testing.why_not("drloc_pairs", {"features": features, **options}, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return vt.drloc_pairs(features, **options, backend=backend)


def literal(features: Tensor, positions: Tensor) -> Tensor:
    """[B, m, 2C], one position after the other."""
    rows = [[torch.cat([image[r, c], image[p, q]]) for r, c, p, q in pairs.tolist()] for image, pairs in zip(features, positions, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])


@on_backends
@pytest.mark.parametrize("size", [(7, 7), (2, 9), (9, 2), (1, 1)])
def test_pairs_are_what_indexing_gives(backend, size):
    features = torch.randn(3, *size, 10)
    pairs, _, positions = pairs_of(backend, features, num_pairs=20, seed=3)
    assert torch.equal(pairs, literal(features, positions))


@on_backends
def test_the_2_by_3_map_on_which_the_released_index_is_wrong(backend):
    """Positions (0, 1), (0, 2), (1, 1) of elements 1 to 6: 2, 3, 5. With row * H + column they would be 2, 3, 4."""
    features = torch.arange(1.0, 7.0).view(1, 2, 3, 1)
    positions = torch.tensor([[[0, 1, 0, 2], [1, 1, 1, 1]]])
    pairs, _, _ = pairs_of(backend, features, positions=positions)
    assert pairs.flatten().tolist() == [2, 3, 5, 5]


@on_backends
def test_targets_of_known_positions(backend):
    features, positions = torch.randn(1, 4, 5, 2), torch.tensor([[[0, 4, 3, 1], [2, 2, 2, 2], [3, 0, 0, 4]]])

    def targets(**options):
        return pairs_of(backend, features, positions=positions, **options)[1][0]

    torch.testing.assert_close(targets(), torch.tensor([[3 / 4, 3 / 5], [0, 0], [3 / 4, 4 / 5]]))
    torch.testing.assert_close(targets(target="signed"), torch.tensor([[-3 / 4, 3 / 5], [0, 0], [3 / 4, -4 / 5]]))
    assert targets(normalize=False).tolist() == [[3, 3], [0, 0], [3, 4]]
    assert targets(target="signed", normalize=False).tolist() == [[-3, 3], [0, 0], [3, -4]]
    assert targets().dtype == torch.float32


@on_backends
def test_targets_are_float32_beside_half_precision(backend):
    assert pairs_of(backend, torch.zeros(1, 7, 7, 8, dtype=torch.bfloat16), seed=1)[1].dtype == torch.float32


@on_backends
def test_the_draw_is_philox_as_documented(backend):
    _, _, positions = pairs_of(backend, torch.zeros(2, 5, 9, 1), num_pairs=3, seed=-7, offset=2**35 + 9)
    counter = [torch.tensor(c) for c in (2, 1, 9, 8)]
    words = [int(word) for word in philox(-7, *counter)]
    assert positions[1, 2].tolist() == [(word * size) >> 32 for word, size in zip(words, (5, 9, 5, 9), strict=True)]


def test_every_backend_draws_the_same_and_gives_the_same_bits():
    features = torch.randn(4, 6, 5, 33)
    for found, expected in zip(pairs_of("cpu", features, seed=5), pairs_of("reference", features, seed=5), strict=True):
        assert torch.equal(found, expected)


@on_backends
def test_positions_are_uniform_on_each_axis_and_independent(backend):
    _, _, positions = pairs_of(backend, torch.zeros(64, 3, 5, 1), num_pairs=500, seed=1)
    count = positions.shape[0] * positions.shape[1]
    for axis, size in enumerate((3, 5, 3, 5)):
        expected = count / size
        found = positions[..., axis].flatten().bincount(minlength=size)
        # five standard deviations
        assert len(found) == size and (found - expected).abs().max() < 5 * expected**0.5
    joint = ((positions[..., 0] * 5 + positions[..., 1]) * 3 + positions[..., 2]).flatten().bincount(minlength=45)
    assert (joint - count / 45).abs().max() < 5 * (count / 45) ** 0.5


@on_backends
def test_seed_offset_and_image_each_change_the_draw(backend):
    def draw(**options):
        return pairs_of(backend, torch.zeros(2, 14, 14, 1), **options)[2]

    first = draw(seed=1)
    assert torch.equal(first, draw(seed=1))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, draw(seed=2)) and not torch.equal(first, draw(seed=1, offset=1))


def test_without_a_seed_torchs_generator_decides():
    features = torch.zeros(1, 14, 14, 1)
    torch.manual_seed(4)
    first, second = (vt.drloc_pairs(features)[2] for _ in range(2))
    torch.manual_seed(4)
    assert torch.equal(first, vt.drloc_pairs(features)[2]) and not torch.equal(first, second)


@pytest.mark.parametrize("options", [{"seed": 3}, {"positions": torch.zeros(1, 4, 4, dtype=torch.int64)}], ids=["seed", "positions"])
def test_no_random_number_is_consumed_where_none_is_needed(options):
    before = torch.get_rng_state()
    vt.drloc_pairs(torch.zeros(1, 3, 3, 1), **options)
    assert torch.equal(torch.get_rng_state(), before)


@on_backends
def test_layouts_see_the_same_map(backend):
    features = torch.randn(2, 3, 4, 6)
    expected = pairs_of(backend, features, seed=2)
    for view, options in ((features.permute(0, 3, 1, 2), {"layout": "bchw"}), (features.flatten(1, 2), {"layout": "bnc", "grid": (3, 4)})):
        for memory in (view, view.contiguous()):
            for found, wanted in zip(pairs_of(backend, memory, seed=2, **options), expected, strict=True):
                assert torch.equal(found, wanted)


@on_backends
def test_gradients_count_the_uses_of_a_position(backend):
    features = torch.zeros(1, 2, 2, 3, requires_grad=True)
    pairs, _, _ = pairs_of(backend, features, positions=torch.tensor([[[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]]]))
    pairs.sum().backward()
    assert features.grad[0, :, :, 0].tolist() == [[3, 1], [0, 2]]
    assert torch.equal(features.grad, features.grad[..., :1].expand_as(features))


@on_backends
def test_images_do_not_touch_each_other(backend):
    positions = torch.randint(0, 4, (2, 9, 4))
    features = torch.randn(2, 4, 4, 5, requires_grad=True)
    pairs, _, _ = pairs_of(backend, features, positions=positions)
    (grad,) = torch.autograd.grad(pairs[0].square().sum(), features)
    assert grad[0].abs().sum() > 0 and grad[1].abs().sum() == 0
    changed = torch.stack([features[0], torch.randn(4, 4, 5)])
    assert torch.equal(pairs_of(backend, changed, positions=positions)[0][0], pairs[0])


@on_backends
def test_many_narrow_gradients_are_added_in_float32(backend):
    """2048 ones: bfloat16 alone would stop at 256."""
    features = torch.zeros(1, 1, 1, 40, dtype=torch.bfloat16, requires_grad=True)
    pairs_of(backend, features, num_pairs=1024, seed=0)[0].sum().backward()
    assert features.grad.unique().tolist() == [2048]


def test_nothing_is_saved_but_positions():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        vt.drloc_pairs(torch.randn(2, 7, 7, 96, requires_grad=True), num_pairs=8, seed=1)
    assert [tuple(x.shape) for x in kept] == [(2, 8, 4)]


def test_positions_changed_in_place_are_noticed():
    features = torch.randn(1, 3, 3, 2, requires_grad=True)
    pairs, _, positions = vt.drloc_pairs(features, seed=1)
    positions.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pairs.sum().backward()


def test_given_positions_are_not_returned_themselves():
    given = torch.zeros(1, 3, 4, dtype=torch.int64)
    assert vt.drloc_pairs(torch.zeros(1, 2, 2, 1), positions=given)[2].data_ptr() != given.data_ptr()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 13])
def test_the_number_of_threads_changes_no_bit(threads, batch):
    features = torch.randn(batch, 5, 6, 203)
    expected = pairs_of("reference", features, seed=9, num_pairs=21)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        leaf = features.clone().requires_grad_()
        found = pairs_of("cpu", leaf, seed=9, num_pairs=21)
        upstream = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(1))
        (grad,) = torch.autograd.grad(found[0], leaf, upstream)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    true = torch.ops.vtkernels.drloc_pairs_backward(upstream, expected[2], 5, 6, "reference")
    assert torch.equal(grad, true)


MAP = torch.zeros(2, 3, 4, 8)
OUTSIDE = torch.tensor([[[0, 0, 0, 0]], [[2, 3, 2, 4]]])


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (None, {}, r"features must be a tensor \[B, H, W, C\], got NoneType"),
        (MAP[0], {}, r"features must have 4 dimensions \[B, H, W, C\], got \[3, 4, 8\]"),
        (MAP.long(), {}, "features must have dtype float16, bfloat16, float32 or float64, got torch.int64"),
        (MAP[:, :0], {}, "at least one row, column and channel, got 0 x 4 of 8 channels"),
        (MAP[..., :0], {}, "at least one row, column and channel, got 3 x 4 of 0 channels"),
        (MAP, {"num_pairs": 0}, "the number of pairs must be at least 1, got 0"),
        (MAP, {"num_pairs": -1}, "the number of pairs must be at least 1, got -1"),
        (MAP, {"num_pairs": 2.0}, "num_pairs must be an int, got 2.0"),
        (MAP, {"layout": "hwc"}, "layout must be one of bhwc, bchw, bnc, got 'hwc'"),
        (MAP, {"layout": "bnc", "grid": (3, 4)}, r"features must have 3 dimensions \[B, H \* W, C\]"),
        (MAP.flatten(1, 2), {"layout": "bnc"}, "grid must be given for layout bnc.*12 tokens"),
        (MAP.flatten(1, 2), {"layout": "bnc", "grid": (3, 3)}, r"grid must have as many positions as features has tokens \(12\), got 3 x 3; leave out a class"),
        (MAP.flatten(1, 2), {"layout": "bnc", "grid": (-3, -4)}, "got -3 x -4"),
        (MAP, {"grid": (3, 4)}, "grid must be left out for layout bhwc"),
        (MAP, {"target": "squared"}, "target must be one of abs, signed, got 'squared'"),
        (MAP, {"seed": "x"}, "seed must be an int, got 'x'"),
        (MAP, {"seed": 2**63}, "seed must fit 64 bits"),
        (MAP, {"offset": None, "seed": 1, "backend": "fast"}, "backend must be one of auto"),
        (MAP, {"positions": [[0, 0, 0, 0]]}, r"positions must be a tensor \[B, m, 4\], got list"),
        (MAP, {"positions": OUTSIDE[0]}, r"positions must have 3 dimensions \[B, m, 4\], got \[1, 4\]"),
        (MAP, {"positions": OUTSIDE[:1]}, r"positions must have shape \[2, 1, 4\], got \[1, 1, 4\]"),
        (MAP, {"positions": OUTSIDE[..., :3]}, r"positions must have shape \[2, 1, 4\], got \[2, 1, 3\]"),
        (MAP, {"positions": OUTSIDE[:, :0]}, "the number of pairs must be at least 1, got 0"),
        (MAP, {"positions": OUTSIDE.float()}, "positions must have dtype int64 or int32, got torch.float32; try positions.long()"),
        (MAP, {"positions": OUTSIDE.to("meta")}, "positions must be on the device of features"),
        (MAP, {"positions": OUTSIDE}, r"positions must lie on the 3 x 4 grid, got \[2, 3, 2, 4\] for pair 0 of image 1; they are \(row, column"),
        (MAP, {"positions": -OUTSIDE}, r"positions must lie on the 3 x 4 grid, got \[-2, -3, -2, -4\]"),
    ],
)
def test_bad_input_is_refused(features, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        vt.drloc_pairs(features, **options)


def test_a_backend_never_reads_outside_the_map():
    """Where the host cannot look, positions are moved to the nearest edge: asked of the kernels directly."""
    from vtkernels.ops.drloc_pairs import native, reference
    from vtkernels.ops.drloc_pairs.common import Call

    features = torch.randn(1, 3, 4, 8)
    call = Call(features, torch.tensor([[[-5, 99, 2**40, -(2**40)]]]), 1, False, True, 0, 0)
    backends = [reference] if native.why_not("forward", call) else [reference, native]
    for backend in backends:
        pairs, targets, positions = backend.forward(call)
        assert positions.tolist() == [[[0, 3, 2, 0]]]
        assert torch.equal(pairs, literal(features, positions))
        torch.testing.assert_close(targets, torch.tensor([[[2 / 3, 3 / 4]]]))
