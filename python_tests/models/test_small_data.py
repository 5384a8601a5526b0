"""ViT and CaiT for small data against their equations written out, under the official names."""

import pytest
import torch
from models.zoo import images, nano
from torch.nn import functional as F

from vtkernels.models import create_model, load_checkpoint

HEADS = 2


class Official:
    """Random weights by official name, drawn as they are asked for, and the layers made of them."""

    def __init__(self, width, local, shifted):
        self.width, self.local, self.shifted = width, local, shifted
        self.weights = {}

    def get(self, name, *shape):
        return self.weights.setdefault(name, 0.3 * torch.randn(shape, dtype=torch.float64))

    def linear(self, x, name, out, bias=True):
        return F.linear(x, self.get(f"{name}.weight", out, x.shape[-1]), self.get(f"{name}.bias", out) if bias else None)

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.get(f"{name}.weight", x.shape[-1]), self.get(f"{name}.bias", x.shape[-1]), 1e-5)

    def patches(self, x, shifted_name, patch=4):
        if self.shifted:
            moved = [F.pad(x, (right, -right, down, -down)) for down in (2, -2) for right in (2, -2)]
            x = torch.cat((x, *moved), 1)
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)
        if self.shifted:
            return self.linear(self.norm(x, f"{shifted_name}.merging.1"), f"{shifted_name}.merging.2", self.width)
        return self.linear(x, "to_patch_embedding.1", self.width)

    def heads(self, x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def scores(self, q, k, name):
        scale = self.get(f"{name}.scale", HEADS)[:, None, None] if self.local else q.shape[-1] ** -0.5
        return q @ k.mT * scale

    def mlp(self, x, name):
        return self.linear(F.gelu(self.linear(x, f"{name}.net.0", 2 * self.width)), f"{name}.net.3", self.width)

    def classify(self, token):
        return self.linear(self.norm(token, "mlp_head.0"), "mlp_head.1", 10)


def official_vit(o, x):
    x = o.patches(x, "to_patch_embedding")
    x = torch.cat((o.get("cls_token", 1, 1, o.width).expand(len(x), 1, -1), x), 1)
    x = x + o.get("pos_embedding", 1, x.shape[1], o.width)
    for index in range(2):
        root = f"transformer.layers.{index}"
        q, k, v = map(o.heads, o.linear(o.norm(x, f"{root}.0.norm"), f"{root}.0.fn.to_qkv", 3 * o.width, bias=False).chunk(3, -1))
        scores = o.scores(q, k, f"{root}.0.fn")
        if o.local:
            scores = scores - 987654321 * torch.eye(x.shape[1], dtype=x.dtype)
        x = x + o.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{root}.0.fn.to_out.0", o.width)
        x = x + o.mlp(o.norm(x, f"{root}.1.norm"), f"{root}.1.fn")
    return o.classify(x[:, 0])


def official_cait(o, x):
    patches = o.patches(x, "to_patch_embedding.0")
    patches = patches + o.get("pos_embedding", 1, patches.shape[1], o.width)
    token = o.get("cls_token", 1, 1, o.width).expand(len(x), -1, -1)

    def layer(x, context, root, mask):
        name, normed = f"{root}.0.fn.fn", o.norm(x, f"{root}.0.fn.norm")
        # the class token's keys and values are of the patches as they are
        k, v = map(o.heads, o.linear(normed if context is None else context, f"{name}.to_kv", 2 * HEADS * 16, bias=False).chunk(2, -1))
        scores = o.scores(o.heads(o.linear(normed, f"{name}.to_q", HEADS * 16, bias=False)), k, name)
        if mask:
            scores = scores * (1 - torch.eye(x.shape[1], dtype=x.dtype))
        scores = torch.einsum("bhij,hg->bgij", scores, o.get(f"{name}.mix_heads_pre_attn", HEADS, HEADS))
        weights = torch.einsum("bhij,hg->bgij", scores.softmax(-1), o.get(f"{name}.mix_heads_post_attn", HEADS, HEADS))
        x = x + o.get(f"{root}.0.scale", 1, 1, o.width) * o.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.to_out.0", o.width)
        return x + o.get(f"{root}.1.scale", 1, 1, o.width) * o.mlp(o.norm(x, f"{root}.1.fn.norm"), f"{root}.1.fn.fn")

    for index in range(2):
        patches = layer(patches, None, f"patch_transformer.layers.{index}", o.local)
    for index in range(2):
        token = layer(token, patches, f"cls_transformer.layers.{index}", False)
    return o.classify(token[:, 0])


@pytest.mark.parametrize("spt_lsa", [False, True], ids=["plain", "spt_lsa"])
@pytest.mark.parametrize(("name", "official", "options"), [("vit", official_vit, {}), ("cait", official_cait, {"head_dim": 16})], ids=["vit", "cait"])
def test_official_weights(name, official, options, spt_lsa, tmp_path):
    torch.manual_seed(0)
    reference = Official(48, spt_lsa, spt_lsa)
    x = images(2, (32, 16), dtype=torch.float64)
    expected = official(reference, x)
    torch.save(reference.weights, tmp_path / "official.pth")
    sizes = {"img_size": (32, 16), "width": 48, "depth": 2, "heads": HEADS, "num_classes": 10, **options}
    model = create_model(f"{name}_small_data{'_spt_lsa' * spt_lsa}_patch4_32", **sizes).double().eval()
    assert load_checkpoint(model, tmp_path / "official.pth").complete
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "parameters"), [("vit_small_data", 2_709_796), ("vit_small_data_spt_lsa", 2_747_248), ("cait_small_data", 9_037_988)])
def test_a_hundred_classes(name, parameters):
    with torch.device("meta"):
        model = create_model(f"{name}_patch4_32", num_classes=100)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("family", ["vit", "cait"])
def test_weights_explain_the_output(family, local):
    model = nano(f"{family}_small_data_nano_patch4_32", local_attention=local).double()
    attention, x = model.blocks[0].attn, torch.randn(2, 5, 48, dtype=torch.float64)
    weights = attention.attention_weights(x)
    value = attention.qkv(x).chunk(3, -1)[2].unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    torch.testing.assert_close(attention.proj((weights @ value).transpose(1, 2).flatten(2)), attention(x), rtol=1e-9, atol=1e-9)
    if local and family == "vit":
        assert (weights.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_the_class_token_of_cait_sees_every_patch():
    model = nano("cait_small_data_nano_patch4_32").eval()
    weights = model.attention_maps(images())["blocks_token_only.1.attn"]
    assert weights.shape == (2, 2, 1, 64)
    assert torch.equal(model.get_attention(images()), weights.reshape(2, 2, 8, 8))


def test_initial_values():
    torch.manual_seed(0)
    vit = create_model("vit_small_data_patch4_32", depth=1)
    # Glorot's normal: 2 / (inputs + outputs)
    for layer, fans in ((vit.patch_embed.proj, 48 + 192), (vit.blocks[0].attn.qkv, 4 * 192), (vit.blocks[0].mlp.fc1, 3 * 192)):
        assert layer.weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.02)
        assert layer.bias is None or (layer.bias == 0).all()
    assert vit.pos_embed.std().item() == pytest.approx(1, rel=0.03)
    local = create_model("vit_small_data_spt_lsa_patch4_32", depth=1)
    assert torch.equal(local.blocks[0].attn.scale, torch.full((12,), 0.25))
    cait = create_model("cait_small_data_patch4_32")
    assert [cait.blocks[index].gamma_1[0].item() for index in (0, 17, 18, 23)] == pytest.approx([0.1, 0.1, 1e-5, 1e-5])
    assert cait.blocks_token_only[1].gamma_2[0].item() == pytest.approx(0.1)
    assert torch.cat([block.attn.mix_heads_pre_attn.flatten() for block in cait.blocks]).std().item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("family", ["vit", "cait"])
def test_every_block_is_dropped_alike(family):
    rates = [module.rate for module in nano(f"{family}_small_data_nano_patch4_32").modules() if type(module).__name__ == "DropPath"]
    assert rates and set(rates) == {0.1}
