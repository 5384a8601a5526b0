"""How often the Triton backend of the multi-tensor ops launches, what its table holds, and where the GPU backends say no."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vtkernels._core import gpu, native
from vtkernels.ops.sam import cuda, pointer_table
from vtkernels.ops.sam import triton as backend
from vtkernels.ops.sam.common import AdamWStep, Perturb, Restore, SgdStep, SquareSum


def _lists(tensors: int, count: int, device: str = "meta", dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    return [[torch.empty(1 + i % 7, 3000, device=device, dtype=dtype) for i in range(tensors)] for _ in range(count)]


def _launches(run: Callable[[], Any]) -> int:
    """Kernels and copies of a table, with no table of an earlier call at hand."""
    from python_tests.gpu import aot

    pointer_table._made.cache_clear()
    with mock.patch.object(pointer_table, "upload", wraps=pointer_table.upload) as upload:
        return len(aot.builds(run)) + upload.call_count


@pytest.mark.parametrize("tensors", [1, 150, 2000])
def test_at_most_four_launches_however_many_tensors(tensors: int):
    pytest.importorskip("triton", reason="the launches to count are triton's, which is not installed")
    params, grads, first, second, backups = _lists(tensors, 5)
    flag, numbers, stretched = torch.empty((), device="meta"), [0.1] * tensors, [i % 2 == 0 for i in range(tensors)]
    perturb = Perturb(params, grads, backups, None, numbers, stretched, 0.0, 1e-12, flag, flag)
    sgd = SgdStep(params, grads, first, backups, numbers, numbers, 0.9, True, False, False, flag, flag)
    adamw = AdamWStep(params, grads, first, second, [flag] * tensors, backups, numbers, numbers, 0.9, 0.999, 1e-8, True, False, flag, flag)
    assert _launches(lambda: backend.square_sum(SquareSum(params, grads, stretched, 0.0))) == 3
    assert _launches(lambda: backend.perturb(perturb)) == 4
    assert _launches(lambda: backend.perturb(perturb._replace(square_sum=torch.empty((), dtype=torch.float64, device="meta")))) == 3
    assert _launches(lambda: backend.restore(Restore(params, backups))) == 2
    assert _launches(lambda: backend.sgd(sgd)) == 2
    assert _launches(lambda: backend.adamw(adamw)) == 3


def test_the_chunk_map_covers_every_element_once():
    chunk = pointer_table.CHUNK
    sizes = (0, 1, chunk, chunk + 1, 0, 3 * chunk - 1)
    words = pointer_table.chunk_map(sizes).tolist()
    assert [(word >> 32, word & 0xFFFFFFFF) for word in words] == [(1, 0), (2, 0), (3, 0), (3, 1), (5, 0), (5, 1), (5, 2)]
    assert pointer_table.chunk_map((0, 0)).numel() == 0


def test_the_table_holds_what_the_kernels_look_for():
    params = [torch.zeros(5), torch.zeros(9000, dtype=torch.bfloat16), torch.zeros(3)[1:]]
    table = pointer_table.pointer_table([params], [[0.25, 0.5, 0.75]], [False, True, False], [[torch.ones(1)] * 3])
    assert (table.tensors, table.columns, table.chunks, table.kinds) == (3, 5, 4, 0b011)
    columns = table.words[: 3 * table.columns].view(table.columns, 3).tolist()
    assert columns[0] == [5, 9000, 2]
    aligned = pointer_table.ALIGNED
    assert columns[1] == [0 + aligned, 1 + aligned + pointer_table.MARKED, 0]
    assert columns[2] == [param.data_ptr() for param in params]
    assert table.numbers[12:15].tolist() == [0.25, 0.5, 0.75]


def test_tables_of_captured_graphs_never_share_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pointer_table, "_reserve", [torch.zeros(100, dtype=torch.int64)])
    first, second = pointer_table._from_reserve(60), pointer_table._from_reserve(40)
    first.fill_(1)
    second.fill_(2)
    assert first.eq(1).all() and second.eq(2).all() and (len(first), len(second)) == (60, 40)
    with pytest.raises(RuntimeError, match="run the step once before the capture"):
        pointer_table._from_reserve(1)


def test_a_step_of_the_largest_model_can_be_captured_after_the_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pointer_table, "_reserve", [])
    monkeypatch.setattr(pointer_table, "_pinned", lambda words: torch.empty(words, dtype=torch.int64))
    # chunks of 2 billion parameters
    words = 2**31 // pointer_table.CHUNK
    pointer_table._keep_reserve(1000)
    pointer_table._keep_reserve(words)
    for _ in range(4):
        assert pointer_table._from_reserve(words).numel() == words


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A pretended GPU, with triton and a native library with CUDA kernels, all of which a test may take away."""
    facts = {"capability": (9, 0), "triton": None, "native": None, "built": None}
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "capability", lambda _: facts["capability"])
    monkeypatch.setattr(gpu, "why_no_triton", lambda: facts["triton"])
    monkeypatch.setattr(native, "why_missing", lambda: facts["native"])
    monkeypatch.setattr(cuda, "why_not_built", lambda: facts["built"])
    return facts


@pytest.mark.parametrize(
    ("module", "facts", "make", "reason"),
    [
        (backend, {}, {"device": "cpu"}, "it runs on CUDA devices, params are on cpu"),
        (backend, {}, {"dtype": torch.float64}, "params[0] is torch.float64"),
        (backend, {"capability": (7, 0)}, {}, "needs compute capability 7.5"),
        (backend, {"capability": (7, 5)}, {"dtype": torch.bfloat16}, "bfloat16 needs compute capability 8.0"),
        (backend, {"triton": "triton cannot be imported"}, {}, "triton cannot be imported"),
        (backend, {}, {"tensors": 3000}, None),
        (backend, {"capability": (7, 5)}, {"dtype": torch.float16}, None),
        (cuda, {}, {"device": "cpu"}, "it runs on CUDA devices, params are on cpu"),
        (cuda, {"capability": (7, 5)}, {}, "it is compiled for compute capability 8.0"),
        (cuda, {}, {"dtype": torch.float64}, "params[0] is torch.float64"),
        (cuda, {}, {"tensors": 577}, "its table holds at most 576 tensors, this call has 577"),
        (cuda, {"native": "the native library was not built"}, {}, "the native library was not built"),
        (cuda, {"built": "built without CUDA kernels"}, {}, "built without CUDA kernels"),
        (cuda, {}, {"tensors": 576}, None),
    ],
)
def test_a_refusal_names_its_reason(device: dict[str, Any], module: Any, facts: dict[str, Any], make: dict[str, Any], reason: str | None):
    device.update(facts)
    with FakeTensorMode():
        call = Restore(*_lists(**{"tensors": 1, "device": "cuda"} | make, count=2))
    found = module.why_not("forward", call)
    assert found is None if reason is None else reason in found
