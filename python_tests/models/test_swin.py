"""Swin against timm and torchvision: logits, maps, attention weights, geometry, initial values."""

import pytest
import torch
from models.zoo import assert_same_function, images
from optional import peer
from oracles import random_parameters

from vtkernels.layers import Attention, Block
from vtkernels.models import create_model, load_checkpoint
from vtkernels.models.swin import SwinTransformer, merge_neighbours

SMALL = {"width": 24, "depths": (2, 2), "heads": (3, 6)}


def timm_swin(**options):
    timm = peer("timm")
    options = {"embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4, "num_classes": 10, **options}
    return random_parameters(timm.models.swin_transformer.SwinTransformer(**options))


def loaded(theirs, path, **options):
    """Our Swin with a peer's weights, by way of a file."""
    torch.save(theirs.state_dict(), path / "peer.pth")
    ours = create_model("swin_tiny_patch4_window7_224", num_classes=10, **{**SMALL, "window": 4, **options})
    assert load_checkpoint(ours, path / "peer.pth").complete
    return ours


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (52, 36), (44, 68), (16, 48), (8, 24), (4, 4)], ids=str)
def test_timm(size, tmp_path):
    """Divided by the windows and not, square and not, and smaller than a window, down to windows of one token."""
    theirs = timm_swin(img_size=size)
    assert_same_function(loaded(theirs, tmp_path, img_size=size), theirs, images(2, size))


def test_timm_swin_tiny(tmp_path):
    theirs = peer("timm").create_model("swin_tiny_patch4_window7_224", num_classes=10, depths=(2, 2, 2, 1))
    ours = loaded(theirs, tmp_path, width=96, depths=(2, 2, 2, 1), heads=(3, 6, 12, 24), window=7)
    ours.eval(), theirs.eval()
    x = images(1, 224)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_an_image_of_any_size_is_seen_as_by_a_model_built_for_it(tmp_path):
    theirs = timm_swin(img_size=(52, 68))
    ours = loaded(theirs, tmp_path, img_size=32)
    assert_same_function(ours, theirs, images(2, (52, 68)))
    # edges that are no multiple of the patch: zeros follow
    x = images(1, (49, 65), dtype=torch.float64)
    torch.testing.assert_close(ours(x), ours(torch.nn.functional.pad(x, (0, 3, 0, 3))), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(32, 32), (44, 68)], ids=str)
def test_torchvision(size, tmp_path):
    theirs = peer("torchvision").models.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [4, 4], stochastic_depth_prob=0.0, num_classes=10)
    ours = loaded(random_parameters(theirs), tmp_path, img_size=size, shift_first=False)
    assert_same_function(ours, theirs, images(2, size))


def test_official_names():
    """The official code ends a stage with its merging, has a plain head, and stores what can be derived."""
    ours = create_model("swin_nano_patch4_window4_32")
    state = {name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value for name, value in ours.state_dict().items()}
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    assert SwinTransformer.convert_state(state).keys() == ours.state_dict().keys()


def test_entries():
    with torch.device("meta"):
        assert len(create_model("swin_tiny_patch4_window7_224").state_dict()) == 173
        model = create_model("swin_base_patch4_window12_384")
    assert len(model.state_dict()) == 329
    assert model.no_weight_decay() == {name for name, _ in model.named_parameters() if name.endswith("relative_position_bias_table")}
    assert [len(group) for group in model.layer_groups()[:3]] == [4, 13, 13]


@pytest.mark.parametrize(
    ("size", "patch", "windows", "shifts"),
    [(224, 4, 7, (0, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 0)), (32, 2, (4, 4, 4, 2), (0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0))],
)
def test_layout(size, patch, windows, shifts):
    with torch.device("meta"):
        model = create_model("swin_tiny_patch4_window7_224", img_size=size, patch_size=patch, window=7 if size == 224 else 4)
    found = []
    for stage, layer in enumerate(model.layers):
        edge = size // patch >> stage
        found += [block.attn.shift_for(edge, edge, block.shift)[0] for block in layer.blocks]
    assert tuple(found) == shifts
    assert [model.window_size(stage)[0] for stage in range(4)] == ([windows] * 4 if isinstance(windows, int) else list(windows))


def test_merging_takes_neighbours_down_the_columns_first():
    x = torch.arange(16).view(1, 4, 4, 1)
    assert merge_neighbours(x)[0, 0, 1].tolist() == [2, 6, 3, 7]
    assert merge_neighbours(x[:, :3, :3])[0, 1, 1].tolist() == [10, 0, 0, 0]


def test_one_window_without_bias_is_a_plain_block():
    block = create_model("swin_nano_patch4_window4_32").layers[1].blocks[1].double()
    plain = Block(64, Attention(64, 4), 256, eps=1e-5).double()
    torch.nn.init.zeros_(block.attn.relative_position_bias_table)
    plain.load_state_dict({name: value for name, value in block.state_dict().items() if not name.endswith("bias_table")})
    x = torch.randn(2, 4, 4, 64, dtype=torch.float64)
    torch.testing.assert_close(block(x).flatten(1, 2), plain(x.flatten(1, 2)))


def test_attention_maps_are_those_of_timm(tmp_path):
    theirs = timm_swin(img_size=(32, 52)).double().eval()
    ours = loaded(theirs, tmp_path, img_size=(32, 52)).double().eval()
    expected = {}
    for name, module in theirs.named_modules():
        if name.endswith("attn"):
            module.softmax.register_forward_hook(lambda _, __, weights, name=name: expected.update({name: weights}))
    x = images(2, (32, 52), dtype=torch.float64)
    theirs(x)
    maps = ours.attention_maps(x)
    assert list(maps) == [f"layers.{stage}.blocks.{index}.attn" for stage in range(2) for index in range(2)]
    for name, weights in maps.items():
        torch.testing.assert_close(weights, expected[name], rtol=1e-9, atol=1e-12)


def test_maps_are_those_of_timm(tmp_path):
    theirs = timm_swin(img_size=64)
    ours = loaded(theirs, tmp_path, img_size=64)
    for found, expected in zip(ours.eval().forward_maps(images(1, 64)), theirs.eval().forward_intermediates(images(1, 64))[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tables_and_positions_follow_the_window_and_the_image(tmp_path):
    small = create_model("swin_nano_patch4_window4_32", absolute_positions=True)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    large = create_model("swin_nano_patch4_window4_32", absolute_positions=True, img_size=(64, 32), window=6, checkpoint=tmp_path / "small.pth")
    assert large.load_report.complete and len(large.load_report.resized) == 5
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    image = small.state_dict()[name].T.view(1, 2, 7, 7)
    expected = torch.nn.functional.interpolate(image, size=(11, 11), mode="bicubic", align_corners=False)
    torch.testing.assert_close(large.state_dict()[name], expected.flatten(2)[0].T)
    assert large.state_dict()["absolute_pos_embed"].shape == (1, 128, 32)
    # maps of 16 x 8 and 8 x 4 patches under windows of 6: the second one's rows are fewer
    assert [large.window_size(stage) for stage in range(2)] == [(6, 6), (6, 4)]


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("swin_tiny_patch4_window7_224", depths=(2, 2), heads=(3, 6), absolute_positions=True)
    for name, parameter in model.named_parameters():
        if "patch_embed.proj" in name:
            assert parameter.abs().max() <= 48**-0.5
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(0.083, rel=0.05)


def test_initial_values_of_glorot():
    torch.manual_seed(0)
    model = create_model("swin_nano_patch4_window4_32", width=64, init="xavier", num_classes=200)
    block = model.layers[0].blocks[0]
    for layer, fans in ((block.attn.qkv, 4 * 64), (block.mlp.fc1, 5 * 64), (model.patch_embed.proj, 48 + 64), (model.head.fc, 128 + 200)):
        assert layer.weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.05)
        assert (layer.bias == 0).all()
    before = model.head.fc.weight
    model.reset_classifier(400)
    assert model.head.fc.weight.std().item() == pytest.approx((2 / (128 + 400)) ** 0.5, rel=0.05) and model.head.fc.weight is not before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "jax"}, "init must be one of timm, xavier, got 'jax'"),
        ({"heads": (2,)}, r"depths and heads must give as many stages, each of one block or more, got \(2, 2\) and \(2,\)"),
        ({"heads": (3, 4)}, "dim must be a multiple of num_heads=3, got 32"),
        ({"patch_size": 0}, "patch_size must be positive, got 0"),
        ({"window": "7"}, r"window must be an int or a pair of ints \(rows, columns\), got '7'"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        create_model("swin_nano_patch4_window4_32", **options)


def test_simmims_file_has_the_encoder_beside_a_decoder(tmp_path):
    model = create_model("swin_nano_patch4_window4_32", num_classes=10)
    state = {f"encoder.{name}": value for name, value in model.state_dict().items() if not name.startswith("head.")}
    torch.save({"model": state | {"encoder.mask_token": torch.zeros(1, 1, 32), "decoder.0.weight": torch.zeros(3)}}, tmp_path / "simmim.pth")
    found = create_model("swin_nano_patch4_window4_32", num_classes=10, checkpoint=tmp_path / "simmim.pth")
    assert found.load_report.missing == ["head.fc.weight", "head.fc.bias"]
    assert found.load_report.unexpected == ["mask_token"]
    assert torch.equal(found.norm.weight, model.norm.weight)
