"""ViT and CaiT for small data sets from scratch, with shifted patch tokenization and locality self-attention.

Lee et al., "Vision Transformer for Small-Size Datasets", 2021.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels.layers import Attention, ScaledBlock, ShiftedPatches, xavier_normal
from vtkernels.models._registry import Info, Variant, register
from vtkernels.models._vit_names import patch_kernel, rename
from vtkernels.models.cait import Cait, CaitConfig, ClassBlock
from vtkernels.models.vit import VisionTransformer, ViTConfig
from vtkernels.ops.talking_heads_attention.op import talking_heads_attention


@dataclass(frozen=True, kw_only=True)
class SmallDataViTConfig(ViTConfig):
    """A ViT whose stochastic depth is the same in all blocks.

    Attributes:
        shifted_patches: whether patches are embedded together with their surroundings.
        local_attention: whether each head learns its temperature and tokens are hidden from themselves.
    """

    img_size: int | tuple[int, int] = 32
    patch_size: int = 4
    width: int = 192
    depth: int = 9
    mlp_ratio: float = 2.0
    qkv_bias: bool = False
    norm_eps: float = 1e-5
    drop_path: float = 0.1
    init: str = "xavier"
    shifted_patches: bool = False
    local_attention: bool = False


@dataclass(frozen=True, kw_only=True)
class SmallDataCaitConfig(CaitConfig):
    """A CaiT whose class attention has talking heads and stochastic depth as well, and keys and values of patches that are not normalised.

    Attributes:
        head_dim: channels of a head, whatever the width.
        layer_scale: initial factor of residual branches; None for CaiT's rule, applied to the place of each block.
        shifted_patches, local_attention: as in `SmallDataViTConfig`.
    """

    img_size: int | tuple[int, int] = 32
    patch_size: int = 4
    head_dim: int = 64
    mlp_ratio: float = 2.0
    layer_scale: float | None = None
    norm_eps: float = 1e-5
    drop_path: float = 0.1
    shifted_patches: bool = False
    local_attention: bool = False


class ShiftedPatchTokens(ShiftedPatches):
    """[B, C, H, W] -> [B, N, D]"""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1, 2)


def diagonal(tokens: int, device: torch.device) -> Tensor:
    """[N, N]: true where a token meets itself."""
    return torch.eye(tokens, dtype=torch.bool, device=device)


class LocalAttention(Attention):
    """Self-attention in which each head learns its temperature and no token sees itself."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__(dim, num_heads, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.scale = nn.Parameter(torch.full((num_heads,), self.scale))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        others, dropout = ~diagonal(x.shape[1], x.device), self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q * self.scale[:, None, None], k, v, attn_mask=others, dropout_p=dropout, scale=1.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def attention_weights(self, x: Tensor) -> Tensor:
        q, k, _ = self.heads(x)
        scores = q * self.scale[:, None, None] @ k.transpose(-2, -1)
        return scores.masked_fill(diagonal(x.shape[1], x.device), float("-inf")).softmax(-1)


class MixedHeads(nn.Module):
    """What the two talking-heads layers share: `mix_heads_*` [from, to] without bias, and a temperature, learned per head if `local`."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, local: bool):
        super().__init__()
        self.num_heads, self.local = num_heads, local
        self.mix_heads_pre_attn = nn.Parameter(torch.randn(num_heads, num_heads))
        self.mix_heads_post_attn = nn.Parameter(torch.randn(num_heads, num_heads))
        self.scale = nn.Parameter(torch.full((num_heads,), head_dim**-0.5)) if local else head_dim**-0.5
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def weights(self, q: Tensor, k: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, h, queries, keys] of q and k, each [B, h, tokens, D]."""
        scores = q * (self.scale[:, None, None] if self.local else self.scale) @ k.transpose(-2, -1)
        if hidden is not None:
            # before the mixing, which may turn any sign around, a hidden score can only be zero
            scores = scores.masked_fill(hidden, 0.0)
        scores = torch.einsum("bhij, hg -> bgij", scores, self.mix_heads_pre_attn)
        return torch.einsum("bhij, hg -> bgij", scores.softmax(-1), self.mix_heads_post_attn)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, N, parts h D] -> `parts` times [B, h, N, D]."""
        return x.unflatten(-1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


class TrunkHeads(MixedHeads):
    """Talking heads among the patches: [B, N, C] -> [B, N, C]."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, local: bool):
        super().__init__(dim, num_heads, head_dim, local)
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.local:
            pre, post = self.mix_heads_pre_attn.T, self.mix_heads_post_attn.T
            return self.proj(talking_heads_attention(self.qkv(x), pre, None, post, None, num_heads=self.num_heads, scale=self.scale))
        q, k, v = self.split(self.qkv(x), 3)
        weights = self.weights(q, k, diagonal(x.shape[1], x.device))
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    def attention_weights(self, x: Tensor) -> Tensor:
        q, k, _ = self.split(self.qkv(x), 3)
        return self.weights(q, k, diagonal(x.shape[1], x.device) if self.local else None)


class ClassHeads(MixedHeads):
    """Talking heads of the class token over the patches, itself excluded: [B, 1, C], [B, N, C] -> [B, 1, C]."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, local: bool):
        super().__init__(dim, num_heads, head_dim, local)
        self.q = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.kv = nn.Linear(dim, 2 * num_heads * head_dim, bias=False)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        _, v = self.split(self.kv(patches), 2)
        return self.proj((self.attention_weights(token, patches) @ v).transpose(1, 2).flatten(2))

    def attention_weights(self, token: Tensor, patches: Tensor) -> Tensor:
        (q,), (k, _) = self.split(self.q(token), 1), self.split(self.kv(patches), 2)
        return self.weights(q, k)


class PatchReadingBlock(ClassBlock):
    """Class attention that normalises its query alone."""

    def read(self, token: Tensor, patches: Tensor) -> Tensor:
        return self.attn(self.norm1(token), patches)


class SmallDataViT(VisionTransformer):
    def new_patch_embed(self) -> nn.Module:
        config = self.config
        return ShiftedPatchTokens(config.patch_size, config.in_channels, config.width) if config.shifted_patches else super().new_patch_embed()

    def new_attention(self) -> nn.Module:
        config = self.config
        if not config.local_attention:
            return super().new_attention()
        return LocalAttention(config.width, config.heads, config.qkv_bias, attn_drop=config.attention_dropout, proj_drop=config.dropout)

    def drop_rates(self) -> list[float]:
        return [self.config.drop_path] * self.config.depth


class SmallDataCait(Cait):
    def new_patch_embed(self) -> nn.Module:
        config = self.config
        return ShiftedPatchTokens(config.patch_size, config.in_channels, config.width) if config.shifted_patches else super().new_patch_embed()

    def new_block(self, index: int) -> nn.Module:
        return ScaledBlock(attn=self._heads(TrunkHeads), **self._block_options(index))

    def new_class_block(self, index: int) -> nn.Module:
        return PatchReadingBlock(attn=self._heads(ClassHeads), **self._block_options(index))

    def _heads(self, kind: type[MixedHeads]) -> MixedHeads:
        config = self.config
        return kind(config.width, config.heads, config.head_dim, config.local_attention)

    def _block_options(self, index: int) -> dict[str, object]:
        config = self.config
        by_rule = 0.1 if index < 18 else 1e-5 if index < 24 else 1e-6
        return {
            "dim": config.width,
            "hidden": self.hidden,
            "layer_scale": by_rule if config.layer_scale is None else config.layer_scale,
            "eps": config.norm_eps,
            "drop": config.dropout,
            "drop_path": config.drop_path,
        }

    def initialise(self) -> None:
        xavier_normal(self)
        for table in (self.pos_embed, self.cls_token):
            nn.init.normal_(table)

    def initialise_classifier(self, head: nn.Linear) -> None:
        xavier_normal(head)

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_official_cait(state) if any(name.startswith("patch_transformer.") for name in state) else state


OFFICIAL_CAIT = (
    ("patch_transformer.layers.", "blocks."),
    ("cls_transformer.layers.", "blocks_token_only."),
    (".0.fn.fn.to_out.0.", ".attn.proj."),
    (".0.fn.fn.", ".attn."),
    (".0.fn.norm.", ".norm1."),
    (".1.fn.norm.", ".norm2."),
    (".1.fn.fn.net.0.", ".mlp.fc1."),
    (".1.fn.fn.net.3.", ".mlp.fc2."),
    (".0.scale", ".gamma_1"),
    (".1.scale", ".gamma_2"),
    ("to_patch_embedding.0.", "patch_embed."),
    ("to_patch_embedding.1.", "patch_embed.proj."),
    ("pos_embedding", "pos_embed"),
    ("mlp_head.0.", "norm."),
    ("mlp_head.1.", "head."),
)


def _from_official_cait(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = rename(state, OFFICIAL_CAIT)
    for name in list(state):
        if name.endswith(("gamma_1", "gamma_2")):
            state[name] = state[name].flatten()
        elif found := re.fullmatch(r"(blocks\.\d+\.attn\.)to_q\.weight", name):
            state[found[1] + "qkv.weight"] = torch.cat((state.pop(name), state.pop(found[1] + "to_kv.weight")))
        elif found := re.fullmatch(r"(blocks_token_only\.\d+\.attn\.)to_(q|kv)\.weight", name):
            state[f"{found[1]}{found[2]}.weight"] = state.pop(name)
    weight = state.get("patch_embed.proj.weight")
    if weight is not None and weight.dim() == 2:
        state["patch_embed.proj.weight"] = patch_kernel(weight)
    return state


def _info(parameters: int, gmacs: float | None = None, classes: int = 10, source: str = "arXiv:2112.13492") -> Info:
    return Info(parameters=parameters, gmacs=gmacs, classes=classes, source=source)


BOTH = {"shifted_patches": True, "local_attention": True}
AT_64 = {"img_size": 64, "patch_size": 8}
TESTS = "for tests and demonstrations"

register(
    SmallDataViT,
    {
        "vit_small_data_nano_patch4_32": Variant(SmallDataViTConfig(width=48, depth=2, heads=4, **BOTH), _info(53_442, source=TESTS)),
        "vit_small_data_patch4_32": Variant(SmallDataViTConfig(), _info(2_692_426, 0.190)),
        "vit_small_data_patch8_64": Variant(SmallDataViTConfig(**AT_64), _info(2_756_744, classes=200)),
        "vit_small_data_spt_lsa_patch4_32": Variant(SmallDataViTConfig(**BOTH), _info(2_729_878, 0.199)),
        "vit_small_data_spt_lsa_patch8_64": Variant(SmallDataViTConfig(**AT_64, **BOTH), _info(2_906_228, classes=200)),
    },
)

register(
    SmallDataCait,
    {
        "cait_small_data_nano_patch4_32": Variant(SmallDataCaitConfig(width=48, depth=2, heads=2, head_dim=16, **BOTH), _info(79_154, source=TESTS)),
        "cait_small_data_patch4_32": Variant(SmallDataCaitConfig(), _info(9_020_618, 0.614)),
        "cait_small_data_patch8_64": Variant(SmallDataCaitConfig(**AT_64), _info(9_084_936, classes=200)),
        "cait_small_data_spt_lsa_patch4_32": Variant(SmallDataCaitConfig(**BOTH), _info(9_058_066)),
        "cait_small_data_spt_lsa_patch8_64": Variant(SmallDataCaitConfig(**AT_64, **BOTH), _info(9_234_416, classes=200)),
    },
)
