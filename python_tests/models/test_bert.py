"""BERT against transformers', whose names its checkpoints have."""

import pytest
import torch
from optional import peer

from vtkernels.models import create_model, load_checkpoint


def words(*shape, seed=0):
    return torch.randint(32, shape, generator=torch.Generator().manual_seed(seed))


def their_bert():
    transformers = peer("transformers")
    config = transformers.BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config.max_position_embeddings = 32
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("old", [False, True], ids=["bare", "old"])
def test_transformers(old, tmp_path):
    theirs = their_bert()
    state = theirs.state_dict()
    if old:
        # as files with heads for pretraining were written once
        oldest = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new_name, old_name in oldest:
            state = {name.replace(new_name, old_name): value for name, value in state.items()}
        state = {f"bert.{name}": value for name, value in state.items()} | {"cls.predictions.bias": torch.zeros(32)}
    torch.save(state, tmp_path / "weights.pth")
    ours = create_model("bert_nano")
    report = load_checkpoint(ours, tmp_path / "weights.pth")
    assert not report.missing and not report.mismatched and report.unexpected == (["cls.predictions.bias"] if old else [])
    ours.eval()
    ids, types = words(3, 9), words(3, 9, seed=1) % 2
    kept = torch.arange(9) < torch.tensor([9, 4, 7])[:, None]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        expected = theirs(input_ids=ids, token_type_ids=types, attention_mask=kept.long())
        found = ours(ids, types, ~kept)
        torch.testing.assert_close(found.words[kept], expected.last_hidden_state[kept], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.pooled, expected.pooler_output, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours(ids).pooled, theirs(input_ids=ids).pooler_output, rtol=tolerance, atol=tolerance)


def test_counts_are_those_of_transformers():
    transformers = peer("transformers")
    with torch.device("meta"):
        theirs = transformers.BertModel(transformers.BertConfig())
        ours = create_model("bert_base")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 109_482_240


def test_every_parameter_learns():
    model = create_model("bert_nano")
    output = model(words(4, 8), words(4, 8) % 2)
    (output.words.square().mean() + output.pooled.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert create_model("bert_nano", pooler=False)(words(4, 8)).pooled is None


def test_compiles_exports_and_autocasts():
    torch.manual_seed(0)
    model = create_model("bert_nano").eval()
    arguments = (words(2, 6), words(2, 6, seed=1) % 2, torch.arange(6) >= torch.tensor([6, 3])[:, None])
    expected = model(*arguments).pooled
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(*arguments).pooled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.export.export(model, arguments).module()(*arguments)[1], expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(*arguments).pooled - expected).norm() <= 0.05 * expected.norm()
    assert model(words(0, 6)).words.shape == (0, 6, 32)


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("bert_base", depth=1, vocabulary=100)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == name.endswith("weight")).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.numel() > 10000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name


def test_impossible_inputs():
    model = create_model("bert_nano")
    with pytest.raises(ValueError, match=r"Bert: words must have 32 words at most, got 33; create_model\(\.\.\., max_length=33\)"):
        model(words(1, 33))
    with pytest.raises(ValueError, match=r"Bert: padding must be a bool tensor of shape \[1, 4\], got torch.int64 of shape \[1, 4\]"):
        model(words(1, 4), padding=words(1, 4))
