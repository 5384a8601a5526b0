"""T2T-ViT against its equations written out, the published counts, and the properties of its tokenizers."""

import math

import pytest
import torch
from models.zoo import images, nano
from oracles import random_parameters
from torch.nn import functional as F

from vtkernels.layers import TokenPerformer
from vtkernels.models import create_model

SMALL = {"img_size": (32, 48), "width": 48, "depth": 2, "heads": 3, "token_width": 16, "num_classes": 5}


def split(x, kernel, stride, padding):
    """Tokens of overlapping windows, one after the other: channel slow, position in the window fast."""
    x = F.pad(x, (padding,) * 4)
    rows, columns = ((edge - kernel) // stride + 1 for edge in x.shape[2:])
    windows = [x[:, :, r * stride : r * stride + kernel, c * stride : c * stride + kernel].flatten(1) for r in range(rows) for c in range(columns)]
    return torch.stack(windows, 1), (rows, columns)


class Equations:
    """The network as the paper and the published code define it, on a state dict."""

    def __init__(self, state, tokenizer, heads):
        self.state, self.tokenizer, self.heads = state, tokenizer, heads

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def performer(self, name, x):
        k, q, v = self.linear(f"{name}.kqv", self.norm(f"{name}.norm1", x)).chunk(3, -1)
        w = self.state[f"{name}.w"]

        def phi(t):
            return (t @ w.T - (t**2).sum(-1, keepdim=True) / 2).exp() / math.sqrt(w.shape[0])

        weights = torch.einsum("btm,bsm->bts", phi(q), phi(k))
        y = weights @ v / (weights.sum(-1, keepdim=True) + 1e-8)
        a = v + self.linear(f"{name}.proj", y)
        return a + self.linear(f"{name}.mlp.2", F.gelu(self.linear(f"{name}.mlp.0", self.norm(f"{name}.norm2", a))))

    def transformer(self, name, x):
        q, k, v = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x)).chunk(3, -1)
        weights = (q @ k.mT * x.shape[-1] ** -0.5).softmax(-1)
        a = v + self.linear(f"{name}.attn.proj", weights @ v)
        return a + self.mlp(name, self.norm(f"{name}.norm2", a))

    def mlp(self, name, x):
        return self.linear(f"{name}.mlp.fc2", F.gelu(self.linear(f"{name}.mlp.fc1", x)))

    def block(self, name, x):
        heads = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in heads)
        mixed = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + self.linear(f"{name}.attn.proj", mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(name, self.norm(f"{name}.norm2", x))

    def __call__(self, x):
        layer = self.performer if self.tokenizer == "performer" else self.transformer
        for index, (kernel, stride, padding) in enumerate(((7, 4, 2), (3, 2, 1), (3, 2, 1)), 1):
            tokens, grid = split(x, kernel, stride, padding)
            if index < 3:
                x = layer(f"tokens_to_token.attention{index}", tokens).transpose(1, 2).unflatten(2, grid)
        tokens = self.linear("tokens_to_token.project", tokens)
        x = torch.cat((self.state["cls_token"].expand(len(tokens), -1, -1), tokens), 1) + self.state["pos_embed"]
        for index in range(2):
            x = self.block(f"blocks.{index}", x)
        return self.linear("head", self.norm("norm", x)[:, 0])


@pytest.mark.parametrize("tokenizer", ["performer", "transformer"])
def test_equations(tokenizer):
    model = random_parameters(create_model("t2t_vit_14", tokenizer=tokenizer, **SMALL)).double().eval()
    x = images(2, (32, 48), dtype=torch.float64)
    torch.testing.assert_close(model(x), Equations(model.state_dict(), tokenizer, heads=3)(x), rtol=1e-9, atol=1e-9)


def test_counts():
    with torch.device("meta"):
        model, larger = create_model("t2t_vit_14"), create_model("t2t_vit_14", img_size=384)
    trained = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in (model, larger)]
    assert trained == [21_465_806, 21_465_806]
    assert sum(p.numel() for p in larger.parameters()) == 21_691_470
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w",
    }  # fmt: skip
    pieces = (model.tokens_to_token.attention1, model.tokens_to_token.attention2, model.blocks[3])
    assert [sum(p.numel() for p in piece.parameters() if p.requires_grad) for piece in pieces] == [41_318, 124_544, 1_478_016]
    assert len(model.state_dict()) == 188
    assert {"tokens_to_token.attention2.mlp.2.bias", "tokens_to_token.project.weight", "blocks.13.attn.qkv.weight"} <= model.state_dict().keys()


def test_smaller_windows_suit_smaller_images():
    """The small-data form of Lee et al.: 64 tokens of 32 pixels; its authors count a norm of 2 x 576 that they never use."""
    with torch.device("meta"):
        model = create_model("t2t_vit_12", num_classes=10, img_size=32, tokenizer="transformer", splits=((3, 2, 1), (3, 2, 1)))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 6_486_080 - 2 * 576
    assert model.grid_size == (8, 8) and model.maps_info[-1].reduction == 4


def test_positions_are_fixed_sines_and_cosines(tmp_path):
    model = create_model("t2t_vit_14", depth=1)
    assert model.pos_embed.shape == (1, 197, 384)
    torch.testing.assert_close(model.pos_embed[0, 1, :4], torch.tensor([0.84147, 0.54030, 0.81525, 0.57911]), rtol=0, atol=1e-5)
    torch.save(nano("t2t_vit_nano_32", img_size=64).state_dict(), tmp_path / "weights.pth")
    wide = create_model("t2t_vit_nano_32", num_classes=10, img_size=(32, 96), checkpoint=tmp_path / "weights.pth")
    assert wide.load_report.complete and wide.load_report.resized == ["pos_embed"]


def test_the_performer_approaches_softmax_attention():
    """Random features estimate exp(q . k) without bias: the average over many draws is softmax attention without a scale."""
    torch.manual_seed(0)
    layer = TokenPerformer(12, 8).double()
    q, k = 0.25 * torch.randn(2, 1, 6, 8, dtype=torch.float64)
    estimates = []
    for _ in range(4000):
        # the model's rows are orthogonal and of one length instead, which varies less but errs a little
        torch.nn.init.normal_(layer.w)
        estimates.append(layer.features(q) @ layer.features(k).mT)
    torch.testing.assert_close(torch.stack(estimates).mean(0), (q @ k.mT).exp(), rtol=0.1, atol=0)


def test_values_weighed_by_the_performers_attention_weights():
    layer = random_parameters(TokenPerformer(12, 8)).double().eval()
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    v = layer.kqv(layer.norm1(x))[..., 16:]
    a = v + layer.proj(layer.attention_weights(x)[:, 0] @ v)
    torch.testing.assert_close(layer(x), a + layer.mlp(layer.norm2(a)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_performer_is_finite_in_half_precision(dtype):
    layer = TokenPerformer(12, 8).to(dtype)
    x = 100 * torch.randn(2, 6, 12).to(dtype)
    layer.kqv.weight.data *= 20
    assert layer(x).isfinite().all() and layer(x).dtype == dtype


def test_the_tokenizer_drops_out_by_itself():
    model = nano("t2t_vit_nano_32").train()
    assert not torch.equal(model(images()), model(images()))
    assert torch.equal(*(nano("t2t_vit_nano_32", token_dropout=0.0)(images()) for _ in range(2)))


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("t2t_vit_14", depth=1)
    for name, parameter in model.named_parameters():
        if name.endswith(".w"):
            torch.testing.assert_close(parameter @ parameter.T, 32.0 * torch.eye(32), rtol=1e-4, atol=1e-4)
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.requires_grad:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "conv"}, "tokenizer must be one of performer, transformer, got 'conv'"),
        ({"img_size": 2}, r"img_size must leave at least one token after every split, got \(2, 2\); try 32 pixels or more"),
        ({"splits": ((3, 2),)}, r"splits must be \(kernel, stride, padding\) of one window or more, got \(\(3, 2\),\)"),
        ({"heads": 5}, "dim must be a multiple of num_heads=5, got 64"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("t2t_vit_nano_32", **options)
