"""Memory of large CPU results: it is used again when nobody holds it any more, and never before."""

import gc
import threading

import pytest
import torch

import vtkernels as vt
from vtkernels._core import recycle, testing

SHAPE = (9 << 20,)  # floats: above the limit


@pytest.fixture(autouse=True)
def _empty_pool(monkeypatch):
    monkeypatch.delenv("VTKERNELS_RECYCLE", raising=False)
    recycle.clear()
    yield
    recycle.clear()


def new() -> torch.Tensor:
    return recycle.empty(SHAPE, torch.float32)


def test_memory_comes_back():
    first = new()
    address = first.data_ptr()
    assert recycle.idle_bytes() == 0
    del first
    assert recycle.idle_bytes() == 4 * SHAPE[0]
    assert new().data_ptr() == address


def test_two_results_that_live_have_memory_of_their_own():
    first, second = new(), new()
    first.fill_(1)
    second.fill_(2)
    assert first.data_ptr() != second.data_ptr() and first.eq(1).all()


@pytest.mark.parametrize(
    "hold",
    [
        lambda x: x[5:7],
        lambda x: x.view(torch.int32),
        lambda x: x.detach(),
        lambda x: x.untyped_storage(),
        lambda x: x.numpy(),
        lambda x: memoryview(x.numpy()),
        lambda x: torch.nn.Parameter(x).square().grad_fn,
        lambda x: torch.from_dlpack(x),
    ],
    ids=["slice", "view of another dtype", "detached", "storage", "numpy", "memoryview of numpy", "saved by autograd", "dlpack"],
)
def test_whoever_shares_the_storage_keeps_it(hold):
    result = new()
    held = hold(result)
    del result
    gc.collect()
    assert recycle.idle_bytes() == 0
    del held
    gc.collect()
    assert recycle.idle_bytes() == 4 * SHAPE[0]


def test_a_recycled_result_is_a_new_tensor():
    first = new()
    first.add_(1)
    del first
    again = new()
    assert again._version == 0 and not again.requires_grad and again.grad_fn is None and again.is_contiguous()


def test_small_results_are_torchs():
    del_me = recycle.empty((1 << 20,), torch.float32)
    del del_me
    assert recycle.idle_bytes() == 0


def test_it_can_be_switched_off_and_bounded(monkeypatch):
    monkeypatch.setenv("VTKERNELS_RECYCLE", "0")
    result = new()
    del result
    assert recycle.idle_bytes() == 0
    monkeypatch.setenv("VTKERNELS_RECYCLE", "80")
    results = [new() for _ in range(4)]
    del results
    assert recycle.idle_bytes() == 2 * 4 * SHAPE[0]
    monkeypatch.setenv("VTKERNELS_RECYCLE", "much")
    with pytest.raises(ValueError, match="VTKERNELS_RECYCLE must be a number of MB, got 'much'"):
        new()


def test_results_may_die_in_other_threads():
    results = [[new()] for _ in range(4)]
    addresses = {box[0].data_ptr() for box in results}
    threads = [threading.Thread(target=box.clear) for box in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = [new() for _ in range(4)]
    assert {x.data_ptr() for x in again} == addresses


def test_fresh_memory_is_filled_where_torch_would():
    with testing.poisoned_memory():
        assert new().isnan().all()


def test_an_op_of_large_results_gives_the_same_bits_in_used_memory(monkeypatch):
    features = torch.randn(1, 3, 3, 4100, requires_grad=True)
    inputs = {"features": features, "num_pairs": 1100, "seed": 1}
    if testing.why_not("drloc_pairs", inputs, "cpu"):
        pytest.skip("the native library is not here")
    monkeypatch.setenv("VTKERNELS_RECYCLE", "0")
    expected = vt.drloc_pairs(**inputs)[0].clone()
    monkeypatch.delenv("VTKERNELS_RECYCLE")
    for _ in range(2):
        pairs = vt.drloc_pairs(**inputs)[0]
        assert torch.equal(pairs, expected)
        # what autograd keeps of a product with the pairs must outlive them
        loss = pairs.square().sum()
        size = pairs.numel() * 4
        del pairs
        assert recycle.idle_bytes() < size
        loss.backward()
        del loss
        assert recycle.idle_bytes() >= size
