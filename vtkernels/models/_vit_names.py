"""Weights of ViTs of other codes under timm's names: torchvision's, the original JAX files, big_vision's, and lucidrains'."""

import re

import torch
from torch import Tensor

TORCHVISION = (
    ("class_token", "cls_token"),
    ("conv_proj.", "patch_embed.proj."),
    ("encoder.pos_embedding", "pos_embed"),
    ("encoder.layers.encoder_layer_", "blocks."),
    ("encoder.ln.", "norm."),
    ("heads.head.", "head."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".self_attention.in_proj_", ".attn.qkv."),
    (".self_attention.out_proj.", ".attn.proj."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
    (".mlp.linear_1.", ".mlp.fc1."),
    (".mlp.linear_2.", ".mlp.fc2."),
)

LUCIDRAINS = (
    ("to_patch_embedding.1.", "patch_embed.proj."),
    ("to_patch_embedding.", "patch_embed."),
    ("pos_embedding", "pos_embed"),
    ("transformer.layers.", "blocks."),
    (".0.norm.", ".norm1."),
    (".0.fn.to_qkv.", ".attn.qkv."),
    (".0.fn.to_out.0.", ".attn.proj."),
    (".0.fn.scale", ".attn.scale"),
    (".1.norm.", ".norm2."),
    (".1.fn.net.0.", ".mlp.fc1."),
    (".1.fn.net.3.", ".mlp.fc2."),
    ("mlp_head.0.", "norm."),
    ("mlp_head.1.", "head."),
)


def canonical_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and layouts of any of these codes turned into timm's."""
    if any(name.endswith("embedding/kernel") for name in state):
        return _from_jax(state)
    if "class_token" in state:
        return rename(state, TORCHVISION)
    if any(".ls1.gamma" in name for name in state):
        return rename(state, ((".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2")))
    if any(name.startswith("to_patch_embedding.") for name in state):
        return _from_lucidrains(state)
    return state


def rename(state: dict[str, Tensor], renames: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def _from_lucidrains(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = rename(state, LUCIDRAINS)
    weight = state.get("patch_embed.proj.weight")
    if weight is not None and weight.dim() == 2:
        state["patch_embed.proj.weight"] = patch_kernel(weight)
    return state


def patch_kernel(weight: Tensor, channels: int = 3) -> Tensor:
    """[D, P P C], a patch's values by row, column, channel, as a convolution's [D, C, P, P]."""
    size = round((weight.shape[1] / channels) ** 0.5)
    if size * size * channels != weight.shape[1]:
        return weight
    return weight.unflatten(1, (size, size, channels)).permute(0, 3, 1, 2).contiguous()


def _from_jax(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {re.sub(r"^(opt/target/|params/)", "", name): value for name, value in state.items()}
    converted = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("pre_logits/"):
            # a tanh layer of the files for ImageNet-21k, which no fine-tuned model has
            continue
        if found := re.fullmatch(r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/(query|key|value)/(kernel|bias)", name):
            block, part, kind = found.groups()
            flat = value.flatten(1).T if kind == "kernel" else value.flatten()
            parts.setdefault(f"blocks.{block}.attn.qkv.{'weight' if kind == 'kernel' else 'bias'}", {})[part] = flat
        else:
            new, value = _from_jax_entry(name, value)
            converted[new] = value
    for name, three in parts.items():
        converted[name] = torch.cat([three[part] for part in ("query", "key", "value") if part in three])
    if "pos_embedding" in state and "cls" in state:
        # big_vision adds positions to the patches only
        converted["pos_embed"] = torch.cat((torch.zeros_like(state["cls"]), state["pos_embedding"]), 1)
    return converted


def _from_jax_entry(name: str, value: Tensor) -> tuple[str, Tensor]:
    """One tensor under its new name; a name of no known layer stays."""
    if name == "cls":
        return "cls_token", value
    if name in ("Transformer/posembed_input/pos_embedding", "pos_embedding"):
        return "pos_embed", value
    layer, _, kind = name.rpartition("/")
    if kind == "kernel" and value.dim() == 4:
        value = value.permute(3, 2, 0, 1)
    elif kind == "kernel":
        value = value.flatten(0, -2).T
    layers = {"embedding": "patch_embed.proj", "Transformer/encoder_norm": "norm", "head": "head"}
    new = layers.get(layer)
    if found := re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", layer):
        inner = {
            "LayerNorm_0": "norm1",
            "LayerNorm_1": "norm2",
            "LayerNorm_2": "norm2",
            "MultiHeadDotProductAttention_0/out": "attn.proj",
            "MultiHeadDotProductAttention_1/out": "attn.proj",
            "MlpBlock_0/Dense_0": "mlp.fc1",
            "MlpBlock_0/Dense_1": "mlp.fc2",
            "MlpBlock_3/Dense_0": "mlp.fc1",
            "MlpBlock_3/Dense_1": "mlp.fc2",
        }.get(found[2])
        new = inner and f"blocks.{found[1]}.{inner}"
    if new is None:
        return name, value
    return f"{new}.{'bias' if kind == 'bias' else 'weight'}", value.contiguous()
