"""MLP-Mixer: one MLP across the tokens of a channel, one across the channels of a token, by turns.

Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from vtkernels.layers import DropPath, Mlp, PatchEmbed, lecun_normal, linear_rates
from vtkernels.models._isotropic import Isotropic, IsotropicConfig
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class MixerConfig(IsotropicConfig):
    """An MLP-Mixer.

    Attributes:
        token_ratio, channel_ratio: hidden units of the token MLP and of the channel MLP, both over `width`.
        activation: "gelu", or "gelu_tanh" as in the original JAX code.
    """

    token_ratio: float = 0.5
    channel_ratio: float = 4.0
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dropout: float = 0.0


class MixerBlock(nn.Module):
    def __init__(self, config: MixerConfig, tokens: int, drop_path: float):
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp_tokens = Mlp(tokens, int(width * config.token_ratio), act=config.activation, drop=config.dropout)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp_channels = Mlp(width, int(width * config.channel_ratio), act=config.activation, drop=config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


class MlpMixer(Isotropic):
    def __init__(self, config: MixerConfig):
        super().__init__(config)
        self.stem = PatchEmbed(config.patch_size, config.in_channels, config.width)
        rates = linear_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(MixerBlock(config, self.num_patches, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = self.new_classifier(config.width)
        self.initialise()

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                lecun_normal(module)
        if isinstance(self.head, nn.Linear):
            self.initialise_classifier(self.head)

    def initialise_classifier(self, head: nn.Linear) -> None:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    def _embed(self, x: Tensor) -> Tensor:
        return self.stem(x)

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_jax(state) if "stem/kernel" in state else state


def _from_jax(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = (
        ("stem.", "stem.proj."),
        ("MixerBlock_", "blocks."),
        ("LayerNorm_0.", "norm1."),
        ("LayerNorm_1.", "norm2."),
        ("token_mixing.", "mlp_tokens."),
        ("channel_mixing.", "mlp_channels."),
        ("Dense_0.", "fc1."),
        ("Dense_1.", "fc2."),
        ("pre_head_layer_norm.", "norm."),
        (".scale", ".weight"),
    )
    converted = {}
    for name, value in state.items():
        name = name.replace("/", ".")
        if name.endswith(".kernel"):
            name = name.removesuffix("kernel") + "weight"
            # inputs x outputs, after rows x columns for a convolution
            value = value.movedim((-1, -2), (0, 1)).contiguous()
        for old, new in renames:
            name = name.replace(old, new)
        converted[name] = value
    return converted


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, classes: int = 1000, **fields: object) -> Variant:
    return Variant(MixerConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, classes=classes, source="arXiv:2105.01601"))


SMALL = {"width": 512, "depth": 8}
BASE = {"width": 768, "depth": 12}
LARGE = {"width": 1024, "depth": 24}
HUGE = {"width": 1280, "depth": 32}

register(
    MlpMixer,
    {
        "mixer_nano4_32": _variant(45_962, None, classes=10, img_size=32, patch_size=4, width=64, depth=2, channel_ratio=2.0),
        "mixer_s4_32": _variant(17_110_026, 1.21, classes=10, img_size=32, patch_size=4, **SMALL),
        "mixer_s8_224": _variant(20_646_504, 14.88, 70.2, patch_size=8, **SMALL),
        "mixer_s16_224": _variant(18_528_264, 3.79, 68.8, **SMALL),
        "mixer_s32_224": _variant(19_104_624, 1.00, 63.9, patch_size=32, **SMALL),
        "mixer_b4_32": _variant(57_348_106, 4.08, classes=10, img_size=32, patch_size=4, **BASE),
        "mixer_b8_224": _variant(64_864_168, 50.06, 68.6, patch_size=8, **BASE),
        "mixer_b16_224": _variant(59_880_472, 12.62, 76.44, **BASE),
        "mixer_b32_224": _variant(60_293_428, 3.24, 62.5, patch_size=32, **BASE),
        "mixer_l8_224": _variant(222_071_144, None, patch_size=8, **LARGE),
        "mixer_l16_224": _variant(208_196_168, 44.60, 71.76, **LARGE),
        "mixer_l32_224": _variant(206_939_264, 11.27, patch_size=32, **LARGE),
        "mixer_h14_224": _variant(432_350_952, None, patch_size=14, **HUGE),
    },
)
