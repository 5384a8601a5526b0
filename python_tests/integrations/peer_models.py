"""Small models of every peer and kind of block, with weights that let each term show, and what to feed them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from optional import peer
from torch import Tensor, nn


class Model(NamedTuple):
    make: Callable[..., nn.Module]
    # of the input without its batch
    shape: tuple[int, ...]
    op: str
    # modules that run on the op, and such of the same class as are left alone
    replaced: int
    left: int = 0


def timm(name: str, **options) -> Callable[..., nn.Module]:
    return lambda **more: peer("timm").create_model(name, num_classes=10, **{"drop_path_rate": 0.0, **options, **more})


_SWIN = {"embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}


def torchvision(generation: int, **options) -> Callable[..., nn.Module]:
    def make(dropout: float = 0.0, attention_dropout: float = 0.0) -> nn.Module:
        swin = peer("torchvision.models.swin_transformer")
        kinds = {} if generation == 1 else {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
        drops = {"dropout": dropout, "attention_dropout": attention_dropout, "stochastic_depth_prob": 0.0}
        return swin.SwinTransformer([4, 4], 32, [2, 1], [2, 4], [4, 4], num_classes=10, **kinds, **drops)

    return make


def huggingface(name: str, **options) -> Callable[..., nn.Module]:
    def make(**more) -> nn.Module:
        peer("torchvision")
        transformers = peer("transformers")
        config = getattr(transformers, f"{name}Config")(image_size=32, patch_size=4, **_SWIN, **{"num_labels": 10, "drop_path_rate": 0.0, **options, **more})
        return getattr(transformers, f"{name}ForImageClassification")(config)

    return make


def siglip(**more) -> nn.Module:
    peer("torchvision")
    transformers = peer("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(image_size=32, patch_size=8, **sizes))


def official(generation: str, **options) -> Callable[..., nn.Module]:
    def make() -> nn.Module:
        from official import swin_transformer, swin_transformer_v2

        block = {"v1": swin_transformer, "v2": swin_transformer_v2}[generation].SwinTransformerBlock
        return nn.Sequential(*(block(32, (8, 12), 2, window_size=4, shift_size=shift) for shift in (0, 2)))

    return make


def official_cait() -> nn.Module:
    from official.cait_models import trunk

    return trunk(32, 4)


_CAIT = {"depth": 2, "embed_dim": 32, "num_heads": 4, "img_size": 32, "patch_size": 8}
_POOL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4}
MODELS = {
    "timm swin": Model(timm("swin_tiny_patch4_window7_224", img_size=64, **_SWIN), (3, 64, 64), "window_attention", 3),
    "timm swin, non-square": Model(timm("swin_tiny_patch4_window7_224", img_size=(64, 96), **_SWIN), (3, 64, 96), "window_attention", 3),
    "timm swin, ragged": Model(timm("swin_tiny_patch4_window7_224", img_size=(40, 72), **_SWIN), (3, 40, 72), "window_attention", 3),
    "timm swin, any size": Model(
        timm("swin_tiny_patch4_window7_224", img_size=64, always_partition=True, strict_img_size=False, **_SWIN),
        (3, 44, 84),
        "window_attention",
        3,
    ),
    "timm swinv2": Model(timm("swinv2_tiny_window8_256", img_size=64, **_SWIN), (3, 64, 64), "window_attention", 3),
    "timm swinv2, ragged": Model(timm("swinv2_tiny_window8_256", img_size=(40, 72), **_SWIN), (3, 40, 72), "window_attention", 3),
    "timm cait, talking heads": Model(timm("cait_xxs24_224", **_CAIT), (3, 32, 32), "talking_heads_attention", 2),
    "timm cait, class": Model(timm("cait_xxs24_224", **_CAIT), (3, 32, 32), "class_attention", 2),
    "timm pool": Model(timm("vit_base_patch16_siglip_224", **_POOL), (3, 32, 32), "pooled_attention", 1),
    "torchvision swin": Model(torchvision(1), (3, 32, 48), "window_attention", 3),
    "torchvision swin, ragged": Model(torchvision(1), (3, 40, 76), "window_attention", 3),
    "torchvision swinv2": Model(torchvision(2), (3, 32, 48), "window_attention", 3),
    "torchvision swinv2, ragged": Model(torchvision(2), (3, 40, 76), "window_attention", 3),
    "transformers swin": Model(huggingface("Swin"), (3, 32, 48), "window_attention", 3),
    "transformers swin, ragged": Model(huggingface("Swin"), (3, 40, 76), "window_attention", 3),
    # its shifted blocks add the mask twice
    "transformers swinv2": Model(huggingface("Swinv2"), (3, 40, 76), "window_attention", 2, 1),
    "transformers siglip": Model(siglip, (3, 32, 32), "pooled_attention", 1),
    "official swin": Model(official("v1"), (96, 32), "window_attention", 2),
    "official swinv2": Model(official("v2"), (96, 32), "window_attention", 2),
    "official cait, talking heads": Model(official_cait, (9, 32), "talking_heads_attention", 1),
    "official cait, class": Model(official_cait, (9, 32), "class_attention", 1),
}


def made(name: str, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """The model by its name, its weights random and the same each time: fresh ones are zeros in places, which hides differences."""
    torch.manual_seed(0)
    model = MODELS[name].make(**options).to(dtype)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            spread = 0.02 if path.endswith("logit_scale") else 0.1
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def images(name: str, dtype: torch.dtype = torch.float32, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *MODELS[name].shape, generator=generator, dtype=torch.float64).to(dtype)


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """The logits, or what the model has instead."""
    out = model(x)
    if isinstance(out, Tensor):
        return out
    return out.logits if hasattr(out, "logits") else out.pooler_output
