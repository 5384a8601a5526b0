"""ResMLP: a Mixer without statistics, whose tokens meet in a single linear layer.

Touvron et al., "ResMLP: Feedforward networks for image classification with data-efficient training", 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtkernels.layers import DropPath, Mlp, PatchEmbed, truncated_normal_linears
from vtkernels.models._isotropic import Isotropic, IsotropicConfig
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class ResMlpConfig(IsotropicConfig):
    """A ResMLP. `drop_path` is the same in all blocks.

    Attributes:
        mlp_ratio: hidden channels of the MLP over `width`.
        layer_scale: initial factor of the residual branches; the deeper the model, the smaller.
    """

    width: int = 384
    depth: int = 12
    mlp_ratio: float = 4.0
    layer_scale: float = 0.1
    activation: str = "gelu"
    dropout: float = 0.0


class Affine(nn.Module):
    """alpha * x + beta for each channel: what is left of a normalisation without its statistics."""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class ResMlpBlock(nn.Module):
    def __init__(self, config: ResMlpConfig, tokens: int):
        super().__init__()
        width = config.width
        self.ls1 = nn.Parameter(torch.full((width,), config.layer_scale))
        self.ls2 = nn.Parameter(torch.full((width,), config.layer_scale))
        self.norm1 = Affine(width)
        self.linear_tokens = nn.Linear(tokens, tokens)
        self.norm2 = Affine(width)
        self.mlp_channels = Mlp(width, int(width * config.mlp_ratio), act=config.activation, drop=config.dropout)
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1 * self.linear_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop_path(self.ls2 * self.mlp_channels(self.norm2(x)))


class ResMlp(Isotropic):
    def __init__(self, config: ResMlpConfig):
        super().__init__(config)
        self.stem = PatchEmbed(config.patch_size, config.in_channels, config.width)
        self.blocks = nn.ModuleList(ResMlpBlock(config, self.num_patches) for _ in range(config.depth))
        self.norm = Affine(config.width)
        self.head = self.new_classifier(config.width)
        truncated_normal_linears(self)

    def _embed(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith((".alpha", ".beta"))}

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_official(state) if "patch_embed.proj.weight" in state else state


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = (("patch_embed.", "stem."), (".attn.", ".linear_tokens."), (".mlp.", ".mlp_channels."), (".gamma_", ".ls"))
    converted = {}
    for name, value in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        converted[name] = value.reshape(1, 1, -1) if name.endswith((".alpha", ".beta")) else value
    return converted


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, classes: int = 1000, **fields: object) -> Variant:
    return Variant(ResMlpConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, classes=classes, source="arXiv:2105.03404"))


BIG = {"width": 768, "depth": 24, "layer_scale": 1e-6}

register(
    ResMlp,
    {
        "resmlp_nano_patch4_32": _variant(79_178, None, classes=10, img_size=32, patch_size=4, width=64, depth=2),
        "resmlp_12_patch4_32": _variant(14_279_818, None, classes=10, img_size=32, patch_size=4),
        "resmlp_12_224": _variant(15_350_872, 3.01, 76.6),
        "resmlp_24_224": _variant(30_020_680, 5.96, 79.4, depth=24, layer_scale=1e-5),
        "resmlp_36_224": _variant(44_690_488, 8.91, 79.7, depth=36, layer_scale=1e-6),
        "resmlp_big_24_patch16_224": _variant(115_736_776, 23.0, 81.0, **BIG),
        "resmlp_big_24_224": _variant(129_138_280, 100.23, patch_size=8, **BIG),
    },
)
