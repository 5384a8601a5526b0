"""CvT against transformers, whose network differs in the activation alone; and the DRLOC code's CvT against its equations."""

import pytest
import torch
from models.zoo import images
from optional import peer
from oracles import random_parameters
from torch.nn import functional as F

from vtkernels.models import create_model, load_checkpoint

SMALL = {"widths": (16, 32, 48), "depths": (1, 2, 3), "heads": (1, 2, 3), "num_classes": 10}


def random_state(model):
    """Parameters and running statistics that matter."""
    random_parameters(model)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model


def transformers_cvt():
    transformers = peer("transformers")
    sizes = {"embed_dim": (16, 32, 48), "depth": (1, 2, 3), "num_heads": (1, 2, 3)}
    config = transformers.CvtConfig(**sizes, num_labels=10, drop_path_rate=(0.0, 0.0, 0.0))
    return random_state(transformers.CvtForImageClassification(config))


def loaded(theirs, path, **options):
    torch.save(theirs.state_dict(), path / "peer.pth")
    ours = create_model("cvt_13", **SMALL, **options)
    assert load_checkpoint(ours, path / "peer.pth").complete
    return ours.eval()


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("size", [(32, 64), (50, 37)], ids=str)
def test_transformers(size, act, tmp_path):
    theirs = transformers_cvt().eval()
    for module in theirs.modules():
        if type(module).__name__ == "CvtIntermediate":
            module.activation = torch.nn.GELU() if act == "gelu" else peer("transformers").activations.QuickGELUActivation()
    ours = loaded(theirs, tmp_path, activation=act)
    x = images(2, size)
    torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()).logits, rtol=1e-9, atol=1e-9)
    # in training batch normalisation takes the batch's own statistics
    torch.testing.assert_close(ours.train()(x.double()), theirs.train()(x.double()).logits, rtol=1e-9, atol=1e-9)


def test_maps_are_those_of_transformers(tmp_path):
    theirs = transformers_cvt().eval()
    ours = loaded(theirs, tmp_path, activation="gelu")
    expected = theirs(images(), output_hidden_states=True).hidden_states
    for found, map_ in zip(ours.forward_maps(images()), expected, strict=True):
        torch.testing.assert_close(found, map_, rtol=1e-4, atol=1e-4)


def test_values_weighed_by_the_attention_weights():
    model = random_state(create_model("cvt_13", **SMALL)).double().eval()
    attention, grid = model.stage2.blocks[1].attn, (3, 5)
    x = torch.randn(2, 16, 48, dtype=torch.float64)
    _, _, v = attention.heads(x, grid)
    # keys of 2 x 3 cells, and the class token's
    weights = attention.attention_weights(x, grid)
    assert weights.shape == (2, 3, 16, 7)
    torch.testing.assert_close(attention(x, grid), attention.proj((weights @ v).transpose(1, 2).flatten(2)))
    q, k, _ = attention.heads(x, grid)
    torch.testing.assert_close(weights, (q @ k.mT * 48**-0.5).softmax(-1))
    assert model.get_attention(images(2, (64, 96), dtype=torch.float64)).shape == (2, 3, 2, 3)


def test_counts_and_names():
    with torch.device("meta"):
        models = [create_model(name) for name in ("cvt_13", "cvt_21", "cvt_w24_384")]
        small = create_model("cvt_13", num_classes=100)
    assert [len(model.state_dict()) for model in models] == [459, 731, 833]
    assert [sum(p.numel() for p in stage.parameters()) for stage in models[0].stages] == [61_696, 1_013_568, 18_536_448]
    assert sum(buffer.numel() for buffer in models[0].buffers()) == 25_767
    assert sum(p.numel() for p in small.parameters()) == 19_650_980
    names = models[0].state_dict().keys()
    assert {"stage2.cls_token", "stage0.blocks.0.attn.conv_proj_k.bn.running_var", "stage1.blocks.1.attn.proj_v.bias"} <= names
    assert models[0].no_weight_decay() == {"stage2.cls_token"}


def test_stochastic_depth_is_the_last_stages():
    model = create_model("cvt_13", **SMALL, drop_path=0.1)
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in model.stages]
    assert rates == [[0.0], [0.0, 0.0], [0.0, 0.05, 0.1]]


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("cvt_13", depths=(1, 1, 1))
    # the head's bias keeps torch's values
    assert 0 < model.head.bias.abs().max() <= 384**-0.5
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module is model.head or (module.bias == 0).all(), name
    model.reset_classifier(500)
    assert 0 < model.head.bias.abs().max() <= 384**-0.5


def drloc_equations(state, x):
    """The network of the DRLOC code in evaluation, with heads of 16 channels."""

    def norm(name, x):
        deviation = x.var(1, unbiased=False, keepdim=True).sqrt()
        return (x - x.mean(1, keepdim=True)) / (deviation + 1e-5) * state[f"{name}.g"] + state[f"{name}.b"]

    def project(name, x, stride):
        x = F.conv2d(x, state[f"{name}.0.weight"], None, stride, 1, groups=x.shape[1])
        x = F.batch_norm(x, state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"], state[f"{name}.1.weight"], state[f"{name}.1.bias"])
        return torch.einsum("bchw,oc->bohw", x, state[f"{name}.2.weight"][:, :, 0, 0]).flatten(2)

    for stage, (depth, heads) in enumerate(((1, 1), (1, 2), (2, 3))):
        weight = state[f"layers.{stage}.0.weight"]
        x = F.conv2d(x, weight, state[f"layers.{stage}.0.bias"], 2 if stage else 4, weight.shape[-1] // 2)
        x = norm(f"layers.{stage}.1", x)
        for index in range(depth):
            name = f"layers.{stage}.2.layers.{index}"
            y = norm(f"{name}.0.norm", x)
            q = project(f"{name}.0.fn.to_q.net", y, 1).unflatten(1, (heads, 16))
            kv = project(f"{name}.0.fn.to_kv.net", y, 2)
            k, v = kv[:, : 16 * heads].unflatten(1, (heads, 16)), kv[:, 16 * heads :].unflatten(1, (heads, 16))
            weights = (torch.einsum("bhdn,bhdm->bhnm", q, k) * 16**-0.5).softmax(-1)
            y = torch.einsum("bhnm,bhdm->bhdn", weights, v).flatten(1, 2).unflatten(2, tuple(x.shape[2:]))
            x = x + F.conv2d(y, state[f"{name}.0.fn.to_out.0.weight"], state[f"{name}.0.fn.to_out.0.bias"])
            y = F.conv2d(norm(f"{name}.1.norm", x), state[f"{name}.1.fn.net.0.weight"], state[f"{name}.1.fn.net.0.bias"])
            x = x + F.conv2d(F.gelu(y), state[f"{name}.1.fn.net.3.weight"], state[f"{name}.1.fn.net.3.bias"])
    return F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])


def test_drloc_equations():
    model = random_state(create_model("cvt_drloc_nano_32", num_classes=10)).double().eval()
    x = images(2, (50, 38), dtype=torch.float64)
    torch.testing.assert_close(model(x), drloc_equations(model.state_dict(), x), rtol=1e-9, atol=1e-9)


def test_drloc_counts_and_decay():
    with torch.device("meta"):
        models = [create_model("cvt_drloc_13", num_classes=classes) for classes in (10, 100)]
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [19_555_146, 19_589_796]
    assert "layers.2.2.layers.9.1.norm.g" in models[0].no_weight_decay()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cvt_nano_32", {"heads": (1, 2)}, r"CvtConfig: widths, depths and heads must give as many stages, .*, got \(16, 32, 48\), \(1, 1, 2\) and \(1, 2\)"),
        ("cvt_nano_32", {"heads": (1, 3, 3)}, "dim must be a multiple of num_heads=3, got 32"),
        ("cvt_nano_32", {"activation": "swish"}, "name must be one of gelu"),
        ("cvt_drloc_nano_32", {"depths": (1, 0, 2)}, "CvtDrlocConfig: widths, depths and heads must give as many stages"),
    ],
)  # fmt: skip
def test_impossible_configurations(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)
