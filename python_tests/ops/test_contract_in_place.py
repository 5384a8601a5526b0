"""The contract of ops that write into tensors they are given: what is written, what is not, and that torch notices."""

import contextlib
import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from contract import IN_PLACE, as_function, assert_same, every_case, inputs_for, on_every_device, representative_cases, tensor_arguments
from torch.overrides import TorchFunctionMode

from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import Inputs


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the buffer a tensor lies in, also those that do not belong to it."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


@on_every_device
@every_case(IN_PLACE)
def test_only_what_it_may_write_is_written(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    before = testing.tensors_of(copy.deepcopy(inputs))
    tensors = testing.tensors_of(inputs)
    places = {name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in tensors.items()}
    testing.run_in_place(op, inputs, backend)
    assert {name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in tensors.items()} == places
    # with these put back, every byte must be what it was
    for name, tensor in testing.mutated(op, inputs).items():
        tensor.copy_(before[name])
    for name, tensor in tensors.items():
        assert torch.equal(memory_of(tensor), memory_of(before[name])), f"{name}, or something around it, was written"


@on_every_device
@every_case(IN_PLACE)
def test_torch_knows_what_was_written(op, backend, case, device):
    """A graph that saved a tensor before it was written must refuse to run backward."""
    inputs = inputs_for(op, backend, case, device)
    versions = {name: tensor._version for name, tensor in testing.mutated(op, inputs).items()}
    testing.run_in_place(op, inputs, backend)
    unnoticed = [name for name, tensor in testing.mutated(op, inputs).items() if tensor._version == versions[name]]
    assert not unnoticed


@on_every_device
@representative_cases(IN_PLACE)
def test_parameters_stay_leaves(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    expected = testing.run_case(op, inputs, backend)
    inputs["params"] = [torch.nn.Parameter(param) for param in inputs["params"]]
    loss = sum((param * param).sum() for param in inputs["params"])
    found = testing.run_in_place(op, inputs, backend)
    assert_same(found, expected)
    assert all(param.is_leaf and param.requires_grad for param in inputs["params"])
    assert "output" not in found or not found["output"].requires_grad
    if "params" in OPS[op].mutates:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@contextlib.contextmanager
def recorded_arguments(op: str) -> Iterator[list[tuple]]:
    """What the dispatcher is called with."""
    calls = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is getattr(torch.ops.vtkernels, op).default:
                calls.append(args)
            return function(*args, **(kwargs or {}))

    with Recorder():
        yield calls


@on_every_device
@representative_cases(IN_PLACE)
def test_opcheck(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    with recorded_arguments(op) as calls:
        testing.run_in_place(op, inputs, backend)
    (arguments,) = calls
    torch.library.opcheck(getattr(torch.ops.vtkernels, op).default, arguments)


def run_traced(op: str, inputs: Inputs, backend: str, trace) -> testing.Outcome:
    """`run_in_place` of the traced function: its result, and what is in the tensors afterwards."""
    result = trace(as_function(op, inputs, backend))(tensor_arguments(inputs))
    return testing.tensors_of({"output": result}) | testing.mutated(op, inputs)


@on_every_device
@representative_cases(IN_PLACE)
def test_compiles_into_one_graph(op, backend, case, device, fresh_compiler):
    inputs = inputs_for(op, backend, case, device)
    expected = testing.run_case(op, inputs, backend)
    assert_same(run_traced(op, inputs, backend, lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("op", IN_PLACE)
def test_inductor_compiles_it(op, fresh_compiler):
    inputs = next(case for case in testing.cases(op) if case.representative).inputs(torch.float32)
    expected = testing.run_case(op, inputs, "auto")
    assert_same(run_traced(op, inputs, "auto", lambda function: torch.compile(function, fullgraph=True)), expected)


@on_every_device
@representative_cases(IN_PLACE)
def test_exports(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    expected = testing.run_case(op, inputs, backend)
    function = as_function(op, inputs, backend)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return function(tensors)

    program = torch.export.export(Module(), (tensor_arguments(copy.deepcopy(inputs)),))
    assert_same(run_traced(op, inputs, backend, lambda _: program.module()), expected)
