"""An accelerated model remains a module like any other: copied, saved, hooked, wrapped, restored."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from peer_models import answer, images, made
from torch import nn

import vtkernels as vt

NAMES = ["timm swin", "timm cait, class", "torchvision swin", "transformers swin", "official swinv2"]
EACH = pytest.mark.parametrize("name", NAMES)


def replaced(model: nn.Module) -> int:
    return len(vt.acceleration_report(model).replaced)


@EACH
def test_restore_undoes_everything(name):
    model = made(name)
    before = {path: dict(module.__dict__) for path, module in model.named_modules()}
    with torch.no_grad():
        expected = answer(model, images(name))
        assert vt.accelerate(model) is model
        assert any(dict(module.__dict__) != before[path] for path, module in model.named_modules())
        assert vt.restore(model) is model
        assert torch.equal(answer(model, images(name)), expected)
    assert {path: dict(module.__dict__) for path, module in model.named_modules()} == before
    assert replaced(model) == 0
    assert all("undone" in entry.reason for entry in vt.acceleration_report(model).left_alone if entry.op == "window_attention")


@EACH
def test_parameters_state_and_types_stay(name):
    model = made(name)
    parameters, types = dict(model.named_parameters()), [type(module) for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    vt.accelerate(model)
    assert all(model.get_parameter(path) is parameter for path, parameter in parameters.items())
    assert list(dict(model.named_parameters())) == list(parameters)
    assert [type(module) for module in model.modules()] == types
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    made(name).load_state_dict(model.state_dict())


@EACH
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_accelerated_and_their_own(name, way):
    model, x = vt.accelerate(made(name)), images(name)
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert replaced(twin) == replaced(model) > 0
    with torch.no_grad():
        expected = answer(model, x)
        assert torch.equal(answer(twin, x), expected)
        # the copy computes with the copy's weights, and the model with the model's
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(answer(twin, x), expected)
        assert torch.equal(answer(model, x), expected)
    answer(twin, x).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    vt.restore(twin)
    assert replaced(twin) == 0 < replaced(model)


@EACH
def test_twice_is_once(name):
    model = vt.accelerate(vt.accelerate(made(name)))
    count = replaced(model)
    vt.restore(model)
    assert replaced(model) == 0 < count


def test_another_backend_can_be_asked_for():
    model, x = vt.accelerate(made("timm swin")), images("timm swin")
    by_default = answer(model, x)
    by_reference = answer(vt.accelerate(model, backend="reference"), x)
    torch.testing.assert_close(by_default, by_reference, rtol=1e-4, atol=1e-4)
    assert model.layers[0].blocks[0].__dict__["_attn"].keywords == {"backend": "reference"}


def test_hooks_on_what_is_still_called_work():
    model, x = made("timm swin"), images("timm swin")
    block, seen = model.layers[0].blocks[1], []
    block.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    block.norm1.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    block.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out[0].shape))
    answer(vt.accelerate(model), x).sum().backward()
    assert replaced(model) >= 3
    assert seen == [(2, 16, 16, 32)] * 3


def test_a_hook_that_comes_later_is_served_by_the_original_code():
    model, x = vt.accelerate(made("timm swin")), images("timm swin")
    expected, count = answer(model, x), replaced(model)
    shapes = []
    handle = model.layers[0].blocks[1].attn.softmax.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    torch.testing.assert_close(answer(model, x), expected, rtol=1e-4, atol=1e-4)
    assert shapes == [(2 * 16, 2, 16, 16)]
    assert replaced(model) == count - 1
    handle.remove()
    assert replaced(model) == count


def test_functional_call_sees_the_given_parameters():
    model, x = vt.accelerate(made("timm swin")), images("timm swin")
    doubled = {path: parameter.detach() * 2 for path, parameter in model.named_parameters()}
    found = torch.func.functional_call(model, doubled, (x,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(found, model(x))


def test_gradient_checkpointing():
    model, x = made("timm swin"), images("timm swin")
    vt.accelerate(model).train()
    answer(model, x).square().sum().backward()
    expected = {path: parameter.grad.clone() for path, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing(True)
    answer(model, x).square().sum().backward()
    for path, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[path], rtol=1e-4, atol=1e-4)


def test_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model, x = vt.accelerate(made("timm swin")), images("timm swin")
        expected = answer(model, x)
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.testing.assert_close(wrapped(x), expected)
        wrapped(x).sum().backward()
        assert replaced(wrapped) == replaced(model)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["accelerate", "restore", "acceleration_report"])
def test_what_is_no_module_is_refused(method):
    with pytest.raises(TypeError, match=f"{method}: model must be a torch.nn.Module, got str"):
        getattr(vt, method)("swin")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of auto, triton, cuda, cpu, reference.*, got 'metal'"):
        vt.accelerate(nn.Linear(2, 2), backend="metal")


def test_no_other_library_is_imported():
    """Neither by `import vtkernels`, which does not even load this part, nor by accelerating what comes from elsewhere."""
    lines = (
        "import sys, vtkernels as vt, torch",
        "assert 'vtkernels.integrations' not in sys.modules",
        "model = vt.accelerate(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.MultiheadAttention(4, 2)))",
        "print(vt.acceleration_report(model))",
        "assert not {'timm', 'torchvision', 'transformers'} & set(sys.modules)",
    )
    out = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
    assert "MultiheadAttention (1): left alone: no rule knows this class" in out
