"""Active neurons of known layers, and pruned models that compute, save and load as they should."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vtkernels as vt
from vtkernels.analysis import _progress, sparsity
from vtkernels.layers import Mlp


def loader(*shape: int, count: int = 2, classes: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(*shape), torch.arange(shape[0]) % classes) for _ in range(count)]


class Net(nn.Module):
    """An activation of each kind: a module, a function, and one inside our fused MLP."""

    def __init__(self, act: str = "relu"):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 500), nn.ReLU())
        self.second = nn.Linear(500, 16)
        self.mlp = Mlp(16, 600, 4, act=act)

    def forward(self, x):
        return self.mlp(F.silu(self.second(self.first(x))))


def test_half_of_symmetric_inputs_is_active():
    share = sparsity.active_share(Net(), loader(400, 8))
    assert list(share) == ["first.1", "Net", "mlp"]
    assert share["first.1"] == pytest.approx(0.5, abs=0.05) and 0.3 < share["Net"] < 0.7


@pytest.mark.parametrize("act", ["relu", "gelu", "quick_gelu", "silu"])
@pytest.mark.parametrize("sign, expected", [(-1.0, 0.0), (1.0, 1.0)])
def test_share_inside_the_fused_mlp(act, sign, expected):
    net = Mlp(8, 32, act=act)
    nn.init.zeros_(net.fc1.weight)
    nn.init.constant_(net.fc1.bias, sign)
    assert sparsity.active_share(net, loader(5, 3, 8)) == {"Mlp": expected}


def test_fused_and_plain_mlp_agree():
    net, data = Mlp(8, 32), loader(50, 8)
    plain = nn.Sequential(net.fc1, nn.GELU(), net.fc2)
    assert sparsity.active_share(net, data)["Mlp"] == sparsity.active_share(plain, data)["1"]


def test_every_block_of_models_is_seen():
    vit = vt.create_model("vit_nano_patch4_32", num_classes=4).train()
    assert list(sparsity.active_share(vit, loader(2, 3, 32, 32))) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert vit.training and not vit._forward_pre_hooks
    resnet = vt.create_model("resnet_nano", num_classes=4)
    assert len(sparsity.active_share(resnet, loader(2, 3, 32, 32))) >= 5


def test_dead_units_go_first_and_change_nothing():
    model = vt.create_model("vit_nano_patch4_32", num_classes=4).eval()
    data = loader(3, 3, 32, 32)
    with torch.no_grad():
        for block in model.blocks:
            # some units that put out nothing, and some that nobody reads
            block.mlp.fc1.weight[:64] = 0
            block.mlp.fc1.bias[:64] = 0
            block.mlp.fc2.weight[:, 64:128] = 0
    for method in ("magnitude", "activation"):
        smaller = sparsity.prune(model, 0.5, method, data)
        assert smaller.blocks[0].mlp.fc1.out_features == smaller.blocks[0].mlp.fc2.in_features == 128
        assert model.blocks[0].mlp.fc1.out_features == 256
        with torch.no_grad():
            torch.testing.assert_close(smaller(data[0][0]), model(data[0][0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", sparsity.METHODS)
@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "swin_nano_patch4_window4_32", "metaformer_nano_32"])
def test_pruned_models_are_smaller_files_and_load_again(name, method, tmp_path):
    model, data = vt.create_model(name, num_classes=4).eval(), loader(2, 3, 32, 32)
    whole, path = tmp_path / "whole.safetensors", tmp_path / "pruned.safetensors"
    sparsity.save_pruned(model, whole)
    smaller = sparsity.prune(model, 0.7, method, data)
    sparsity.save_pruned(smaller, path)
    assert path.stat().st_size < (0.75 if method != "weights" else 0.5) * whole.stat().st_size
    loaded = sparsity.load_pruned(vt.create_model(name, num_classes=4).eval(), path)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in smaller.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(loaded(data[0][0]), smaller(data[0][0]), atol=0, rtol=0)
    # it can be trained on
    loaded.train()(data[0][0]).sum().backward()
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_share_of_single_weights_is_what_was_asked_for():
    model = vt.create_model("resnet_nano", num_classes=4)
    smaller = sparsity.prune(model, 0.8, "weights")
    layers = [module for module in smaller.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    zeros, count = sum(int((layer.weight == 0).sum()) for layer in layers), sum(layer.weight.numel() for layer in layers)
    assert zeros / count == pytest.approx(0.8, abs=1e-3)


def test_half_precision_is_packed_exactly(tmp_path):
    model = vt.create_model("vit_nano_patch4_32", num_classes=4).to(torch.bfloat16)
    smaller = sparsity.prune(model, 0.9, "weights")
    sparsity.save_pruned(smaller, tmp_path / "file.safetensors")
    loaded = sparsity.load_pruned(vt.create_model("vit_nano_patch4_32", num_classes=4).to(torch.bfloat16), tmp_path / "file.safetensors")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in smaller.state_dict().items())


def test_units_then_weights(tmp_path):
    smaller = sparsity.prune(sparsity.prune(vt.create_model("vit_nano_patch4_32", num_classes=4), 0.5), 0.5, "weights")
    sparsity.save_pruned(smaller, tmp_path / "file.safetensors")
    loaded = sparsity.load_pruned(vt.create_model("vit_nano_patch4_32", num_classes=4), tmp_path / "file.safetensors")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in smaller.state_dict().items())
    with pytest.raises(ValueError, match="tensors of ResNet"):
        sparsity.load_pruned(vt.create_model("resnet_nano", num_classes=4), tmp_path / "file.safetensors")


def test_curve_and_files(tmp_path):
    model, data = vt.create_model("vit_nano_patch4_32", num_classes=4), loader(4, 3, 32, 32)
    result = sparsity.SparsityResult(active=sparsity.active_share(model, data), complete=False)
    assert sparsity.curve(model, data, [0.5, 0.0], result=result) is result
    assert result.complete and result.shares == [0.0, 0.5]
    for method in sparsity.METHODS:
        assert result.accuracy[method][0] == sparsity.accuracy(model, data)
        assert result.bytes[method][1] < 0.8 * result.bytes[method][0]
    result.models["magnitude"] = sparsity.prune(model, 0.5)
    names = {path.name for path in result.save(tmp_path)}
    assert names == {"sparsity.json", "sparsity.png", "pruned_magnitude.safetensors"}
    assert json.loads((tmp_path / "sparsity.json").read_text())["saved"] == {"magnitude": "pruned_magnitude.safetensors"}


def test_run_on_digits(tmp_path):
    options = sparsity.Options(model="mixer_nano4_32", samples=20, shares=(0.0, 0.5), device="cpu")
    result = sparsity.run(options)
    assert result.complete and set(result.models) == set(sparsity.METHODS)
    assert len(result.active) == 2 * len(result.models["weights"].blocks)
    assert len(result.save(tmp_path)) == 5
    assert "pruned" in result.summary()


@pytest.mark.parametrize("stage", ["active neurons", "pruning", "pruned models"])
def test_interrupted_run_keeps_what_is_done(stage, monkeypatch, tmp_path):
    class Stopped(_progress.Progress):
        def advance(self, note=""):
            super().advance(note)
            if self.what == stage:
                raise KeyboardInterrupt

    monkeypatch.setattr(_progress, "Progress", Stopped)
    result = sparsity.run(sparsity.Options(model="vit_nano_patch4_32", samples=6, batch_size=3, shares=(0.0, 0.5), device="cpu", out=str(tmp_path)))
    assert not result.complete and result.active
    assert (len(result.accuracy), len(result.models)) == {"active neurons": (0, 0), "pruning": (1, 0), "pruned models": (3, 1)}[stage]
    names = {path.name for path in result.save(tmp_path)}
    assert {"sparsity.json", "sparsity.png"} <= names and json.loads((tmp_path / "sparsity.json").read_text())["active"]


def test_interrupted_curve_keeps_what_is_done(monkeypatch):
    model, data, calls = vt.create_model("vit_nano_patch4_32", num_classes=4), loader(2, 3, 32, 32), []

    def accuracy(*_) -> float:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(sparsity, "accuracy", accuracy)
    result = sparsity.curve(model, data, [0.0, 0.1, 0.2], ["magnitude", "weights"])
    assert not result.complete and result.accuracy == {"magnitude": [0.5, 0.5]}


def test_bad_input_is_told():
    model = vt.create_model("resnet_nano", num_classes=4)
    with pytest.raises(ValueError, match="at least one image"):
        sparsity.active_share(model, [])
    with pytest.raises(ValueError, match="class numbers"):
        sparsity.accuracy(model, [(torch.randn(2, 3, 32, 32), torch.rand(2, 4))])
    with pytest.raises(ValueError, match="fc1 and fc2"):
        sparsity.prune(model, 0.5)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        sparsity.prune(model, 1.0, "weights")
    with pytest.raises(ValueError, match="one of magnitude"):
        sparsity.prune(model, 0.5, "luck")
    with pytest.raises(ValueError, match="loader must be given"):
        sparsity.prune(vt.create_model("vit_nano_patch4_32"), 0.5, "activation")
    with pytest.raises(ValueError, match="none in resnet_nano"):
        sparsity.run(sparsity.Options(model="resnet_nano", methods=("magnitude",), samples=2, device="cpu"))
    nn.init.constant_(model.fc.bias, float("nan"))
    with pytest.raises(ValueError, match="finite weights.*fc.bias"):
        sparsity.active_share(model, loader(2, 3, 32, 32))
    with pytest.raises(ValueError, match="ReLU, GELU"):
        sparsity.active_share(nn.Linear(2, 2), loader(2, 2))
