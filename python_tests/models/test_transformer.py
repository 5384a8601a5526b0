"""The encoder-decoder against torch's, its published counts, and what makes it a language model."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vtkernels.models import create_model, load_checkpoint
from vtkernels.models.transformer import MultiHeadAttention


def words(*shape, seed=0):
    return torch.randint(32, shape, generator=torch.Generator().manual_seed(seed))


def nano(**options):
    torch.manual_seed(0)
    return create_model("transformer_nano", **options)


def padding(*lengths):
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_torch(padded, tmp_path):
    theirs = nn.Transformer(32, 2, 1, 2, 64, dropout=0.0, batch_first=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save(theirs.state_dict(), tmp_path / "torch.pth")
    ours = nano().eval()
    report = load_checkpoint(ours, tmp_path / "torch.pth")
    assert report.missing == ["embedding.weight"] and not report.unexpected and not report.mismatched
    source, target = words(3, 9), words(3, 7, seed=1)
    ends = (padding(9, 4, 6), padding(5, 7, 1)) if padded else (None, None)
    masks = {"src_key_padding_mask": ends[0], "tgt_key_padding_mask": ends[1], "memory_key_padding_mask": ends[0]}
    kept = ~ends[1] if padded else slice(None)
    angle = torch.arange(32).double()[:, None] / 10000 ** (torch.arange(0, 32, 2) / 32)
    positions = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        torch.testing.assert_close(ours.positions[0], positions.to(dtype), rtol=1e-6, atol=1e-6)
        # the model keeps them in single precision
        ours.positions.copy_(positions)
        table = ours.embedding.weight
        embedded = [table[ids] * math.sqrt(32) + positions[: ids.shape[1]].to(dtype) for ids in (source, target)]
        expected = theirs(*embedded, tgt_mask=torch.ones(7, 7, dtype=torch.bool).triu(1), **masks) @ table.T
        torch.testing.assert_close(ours(source, target, *ends)[kept], expected[kept], rtol=tolerance, atol=tolerance)


def test_counts():
    def count(**options):
        with torch.device("meta"):
            model = create_model("transformer_base", vocabulary=32000, **options)
        return sum(parameter.numel() for parameter in model.parameters()) - 512 * 32000

    assert count() == 44_138_496
    assert count(final_norms=True) == 44_140_544
    assert count(attention_bias=False) == 44_101_632
    assert count(depth=1, decoder_depth=0) == 3_152_384 and count(depth=0, decoder_depth=1) == 4_204_032


def test_no_word_sees_those_after_it():
    model = nano().eval()
    source, target = words(2, 6), words(2, 8, seed=1)
    logits = model(source, target)
    target[:, 5:] = words(2, 3, seed=2)
    torch.testing.assert_close(model(source, target)[:, :5], logits[:, :5])
    assert not torch.allclose(model(source, target)[:, 5:], logits[:, 5:])


def test_padding_is_not_seen():
    model = nano().eval()
    source, target, ends = words(2, 6), words(2, 8, seed=1), padding(6, 3)
    logits = model(source, target, ends)
    source[1, 3:] = words(3, seed=2)
    torch.testing.assert_close(model(source, target, ends), logits)
    torch.testing.assert_close(model(source[1:, :3], target[1:]), logits[1:])
    # a source with no word at all tells nothing, and breaks nothing
    empty = torch.ones(2, 6, dtype=torch.bool)
    assert model(source, target, empty).isfinite().all()


def test_attention_weights_are_those_of_forward():
    layer = MultiHeadAttention(32, 4).double()
    nn.init.normal_(layer.in_proj_weight, std=0.3)
    x, memory = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 7, 32, dtype=torch.float64)
    visible = ~padding(7, 3)[:, None, None, :]
    for arguments in ({}, {"causal": True}, {"memory": memory}, {"memory": memory, "visible": visible}):
        weights = layer.attention_weights(x, **arguments)
        mixed = weights @ layer.heads(x, arguments.get("memory"))[2]
        torch.testing.assert_close(layer.out_proj(mixed.transpose(1, 2).flatten(2)), layer(x, **arguments), rtol=1e-9, atol=1e-9)


def test_learns_to_reverse_a_sequence():
    model = nano(dropout=0.0)
    source = words(8, 6)
    target = torch.cat((torch.zeros(8, 1, dtype=torch.long), source.flip(1)), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(parameter.grad is not None for parameter in model.parameters())
        if loss < 0.1:
            break
    assert loss < 0.1


def test_compiles_exports_and_autocasts():
    model = nano().eval()
    arguments = (words(2, 6), words(2, 8, seed=1), padding(6, 3), padding(8, 5))
    expected = model(*arguments)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(*arguments), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.export.export(model, arguments).module()(*arguments), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(*arguments) - expected).norm() <= 0.05 * expected.norm()
    assert model(words(0, 6), words(0, 8)).shape == (0, 8, 32)


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("transformer_base", depth=1, decoder_depth=1)
    assert model.embedding.weight.std().item() == pytest.approx(512**-0.5, rel=0.01)
    for layer in (model.encoder.layers[0], model.decoder.layers[0]):
        assert layer.self_attn.in_proj_weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.01)
        assert layer.self_attn.out_proj.weight.abs().max() <= (6 / 1024) ** 0.5
        assert layer.mlp.fc1.weight.std().item() == pytest.approx((2 / 2560) ** 0.5, rel=0.01)
    assert all((parameter == 0).all() for name, parameter in model.named_parameters() if name.endswith("bias"))
    # sine and cosine by turns
    assert model.positions[0, 1, :2].tolist() == pytest.approx([math.sin(1), math.cos(1)])


def test_impossible_inputs():
    model = nano()
    with pytest.raises(ValueError, match=r"source must have 32 words at most, got 40; create_model\(\.\.\., max_length=40\)"):
        model(words(1, 40), words(1, 4))
    with pytest.raises(ValueError, match=r"target must be int64 or int32 word numbers \[B, N\], got torch.float32 of shape \[1, 4\]"):
        model(words(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"padding must be a bool tensor of shape \[1, 4\], got torch.bool of shape \[1, 5\]; it is True where"):
        model(words(1, 4), words(1, 4), padding(5))
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads=3, got 32"):
        nano(heads=3)
