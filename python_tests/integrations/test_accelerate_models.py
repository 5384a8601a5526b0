"""Accelerated models are the models they were: outputs and gradients of every peer and kind of block, in every way they are run."""

import copy

import pytest
import torch
from peer_models import MODELS, answer, images, made
from torch import Tensor, nn

import vtkernels as vt
from vtkernels._core.testing import FORWARD_FACTOR, GRADIENT_FACTOR

EACH = pytest.mark.parametrize("name", MODELS)
# every kind of block once: shapes that differ in padding alone compile alike
_ALIKE = ("timm swin", "timm swin, non-square", "timm swinv2", "timm cait, class", "torchvision swin", "torchvision swinv2", "transformers swin")
KINDS = pytest.mark.parametrize("name", [name for name in MODELS if name not in _ALIKE])
# one of each way that a block is replaced
_SOME = ["timm swin, ragged", "timm swinv2", "timm cait, class", "timm pool", "torchvision swinv2", "transformers swin", "official swin"]
SOME = pytest.mark.parametrize("name", _SOME)


def training(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The answer, and the gradients of the image and of every parameter that has one."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        out = answer(model, x)
    out.float().square().sum().backward() if dtype is not None else out.square().sum().backward()
    grads = {path: parameter.grad for path, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return {"output": out.detach(), "gradient of the input": x.grad} | grads


def assert_within_budget(found: dict[str, Tensor], yardstick: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    """The contract's rule, with what the model's own code errs by as the yardstick."""
    assert found.keys() == truth.keys()
    for name, exact in truth.items():
        factor = FORWARD_FACTOR if name == "output" else GRADIENT_FACTOR
        error, allowed = ((value[name].double() - exact).abs().max() for value in (found, yardstick))
        assert error <= factor * (allowed + torch.finfo(dtype).eps * exact.abs().max()), f"{name}: {error:.2e} off, the model's own code {allowed:.2e}"


@EACH
def test_the_right_modules_are_replaced(name):
    model = vt.accelerate(made(name))
    entries = [entry for entry in vt.acceleration_report(model).entries if entry.op == MODELS[name].op]
    assert [sum(entry.reason is None for entry in entries), sum(entry.reason is not None for entry in entries)] == [MODELS[name].replaced, MODELS[name].left]


@EACH
def test_same_in_float64(name):
    model, x = made(name, torch.float64), images(name, torch.float64)
    expected = training(model, x)
    found = training(vt.accelerate(model, backend="reference"), x)
    assert vt.acceleration_report(model).replaced
    for path, value in expected.items():
        # keys' biases of plain attention cancel in the softmax: their gradients are the rounding of zero
        scale = max(value.abs().max(), 1e-3)
        assert (found.get(path, torch.zeros_like(value)) - value).abs().max() <= 1e-9 * scale, path


@EACH
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast to bfloat16"])
def test_training_within_the_budget(name, dtype):
    truth = training(made(name, torch.float64), images(name, torch.float64))
    model, x = made(name), images(name)
    yardstick = training(model, x, dtype)
    found = training(vt.accelerate(model), x, dtype)
    assert_within_budget(found, yardstick, truth, dtype or torch.float32)


@KINDS
def test_compiles_into_one_graph_and_trains(name, fresh_compiler):
    model, x = vt.accelerate(made(name)), images(name)
    expected = training(model, x)
    compiled = training(torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    for path, value in expected.items():
        torch.testing.assert_close(compiled[path.removeprefix("_orig_mod.")] if path in compiled else compiled[f"_orig_mod.{path}"], value)


@SOME
def test_exports(name):
    model, x = vt.accelerate(made(name)), images(name)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(answer(exported, x), answer(model, x))


@SOME
def test_an_optimizer_made_before_trains_the_same(name):
    runs = []
    for accelerated in (False, True):
        model, x = made(name), images(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if accelerated:
            vt.accelerate(model)
        model.train()
        losses = []
        for _ in range(3):
            # drop path draws the same in both runs
            torch.manual_seed(5)
            loss = answer(model, x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append(losses)
    assert runs[0][2] != runs[0][0]
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


@pytest.mark.parametrize("batch", [1, 5])
@SOME
def test_any_batch(name, batch):
    model, x = made(name), images(name, batch=batch)
    with torch.no_grad():
        expected = answer(model, x)
        torch.testing.assert_close(answer(vt.accelerate(model), x), expected, rtol=1e-4, atol=1e-4)


_DROPOUT = {"timm swin": "attn_drop_rate", "timm swinv2": "attn_drop_rate", "timm cait, class": "attn_drop_rate", "torchvision swin": "attention_dropout"}


@pytest.mark.parametrize(("name", "option"), _DROPOUT.items())
def test_attention_dropout_acts_in_training_only(name, option):
    x, plain, dropping = images(name), made(name), made(name, **{option: 0.3})
    model = vt.accelerate(copy.deepcopy(dropping))
    assert vt.acceleration_report(model).replaced
    with torch.no_grad():
        torch.testing.assert_close(answer(model, x), answer(plain, x), rtol=1e-4, atol=1e-4)
        found, expected = (torch.stack([answer(one.train(), x) for _ in range(40)]) for one in (model, dropping))
    assert not torch.equal(found[0], found[1])
    # other weights are dropped, as many, and made up for alike: the means over draws are nearer than draws are to their mean
    spread = (expected - expected.mean(0)).flatten(1).norm(dim=1).mean()
    assert (found.mean(0) - expected.mean(0)).norm() < 0.5 * spread
    assert 0.5 * spread < (found - found.mean(0)).flatten(1).norm(dim=1).mean() < 2 * spread


def test_drop_path_is_the_models_own():
    model = made("timm swin", drop_path_rate=0.5).train()
    twin, x = copy.deepcopy(model), images("timm swin", batch=8)
    vt.accelerate(model)
    torch.manual_seed(3)
    expected = answer(twin, x)
    torch.manual_seed(3)
    torch.testing.assert_close(answer(model, x), expected, rtol=1e-4, atol=1e-4)


def test_a_map_of_another_size_than_the_mask_is_left_to_timm():
    """With a mask for 16 x 16 tokens and windows of 4, a 8 x 32 map happens to have as many windows."""
    swin = made("timm swin")
    x = torch.randn(2, 8, 32, 32)
    block = swin.layers[0].blocks[1]
    expected = block(x)
    vt.accelerate(swin)
    # the mask of another map would change every output; the Linear layers, which are ours, round otherwise
    torch.testing.assert_close(block(x), expected)


def test_float64_is_left_alone_by_auto():
    model = vt.accelerate(made("timm swin", torch.float64))
    (entry, *_) = vt.acceleration_report(model).left_alone
    assert entry.reason.startswith("no fast backend of window_attention runs here")


def test_a_half_precision_model():
    model, x = made("timm swin", torch.bfloat16), images("timm swin", torch.bfloat16)
    with torch.no_grad():
        truth = answer(made("timm swin", torch.float64), x.double())
        yardstick, found = answer(model, x), answer(vt.accelerate(model), x)
    assert len(vt.acceleration_report(model).replaced) >= 3
    assert_within_budget({"output": found}, {"output": yardstick}, {"output": truth}, torch.bfloat16)
