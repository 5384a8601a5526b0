"""What every model of the zoo can do, so that trainers, recipes and analyses need not know which one they hold."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vtkernels._core import check


@dataclass(frozen=True, kw_only=True)
class Config:
    """What all image models have in common. A family adds its own fields; `create_model(..., field=value)` replaces any of them."""

    num_classes: int = 1000
    img_size: int | tuple[int, int] = 224
    in_channels: int = 3
    drop_path: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the image."""
        return check.pair(type(self).__name__, "img_size", self.img_size)


class MapInfo(NamedTuple):
    """One map of `forward_maps`: its channels, and how many pixels one of its cells spans on each axis."""

    channels: int
    reduction: int


class Model(nn.Module):
    """A classifier: images [B, C, H, W] -> logits [B, classes].

    A family writes `_features` (images to what the head takes), `_logits`, `group_prefixes`, and where it has them `_maps`
    and `maps_info`. Names in `state_dict` are timm's where timm has the family, else those of the official code.
    """

    config: Config
    # the name by which `create_model` made it
    variant: str | None = None
    # means and deviations by which its images were normalised, where it was trained here
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    # names of the final layers, whose shape follows the number of classes
    classifiers: ClassVar[tuple[str, ...]] = ("head",)
    # whether the parameters fit one image size only
    fixed_size: ClassVar[bool] = False
    # tokens before those of the patches; the first is the class token
    prefix_tokens: int = 0
    # channels that the head is given
    head_width: int

    def __init__(self, config: Config):
        super().__init__()
        _check(config)
        self.config = config
        self.num_classes = config.num_classes
        self.grad_checkpointing = False

    # from images to logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head is given: tokens [B, N, D] or a map [B, D, H, W], before pooling."""
        self.check_images(x)
        return self._features(x)

    def forward_head(self, features: Tensor) -> Tensor:
        return self._logits(features)

    def forward_maps(self, x: Tensor) -> list[Tensor]:
        """Maps [B, D, H, W] of growing depth, for detection and segmentation; `maps_info` describes them."""
        self.check_images(x)
        return self._maps(x)

    def _features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _logits(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def _maps(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no feature maps")

    @property
    def maps_info(self) -> list[MapInfo]:
        raise NotImplementedError(f"{type(self).__name__} has no feature maps")

    def keep_maps_only(self) -> None:
        """Drop what `forward_maps` does not use, so that every parameter left has a gradient."""
        self.reset_classifier(0)

    def check_images(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            hint = f"create_model(..., in_channels={x.shape[1]})" if x.dim() == 4 else "a batch of images is expected"
            check.fail(name, "images", f"have shape [B, {self.config.in_channels}, H, W]", list(x.shape), hint)
        size = tuple(x.shape[2:])
        if self.fixed_size and size != self.config.size:
            hint = f"create_model(..., img_size={size}), which carries learned positions of a checkpoint over"
            check.fail(name, "images", f"be {self.config.size[0]} x {self.config.size[1]} pixels", f"{size[0]} x {size[1]}", hint)

    # training

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay would harm, beyond biases and norms, which optimizers tell by their one dimension."""
        return set()

    def group_prefixes(self) -> list[tuple[str, ...]]:
        """Prefixes of parameter names, layer after layer from the input to the head."""
        raise NotImplementedError

    def layer_groups(self) -> list[list[str]]:
        """Parameter names in groups from the input to the head, for layer-wise learning rates."""
        prefixes = self.group_prefixes()
        groups: list[list[str]] = [[] for _ in prefixes]
        for name, _ in self.named_parameters():
            owners = [index for index, group in enumerate(prefixes) if any(name == p or name.startswith(p + ".") for p in group)]
            if len(owners) != 1:
                raise RuntimeError(f"{type(self).__name__}: parameter {name} belongs to {len(owners)} layer groups, expected one")
            groups[owners[0]].append(name)
        return [group for group in groups if group]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward instead of storing them."""
        self.grad_checkpointing = enable

    def run(self, block: Callable[..., Any], *args: Any) -> Any:
        """A block of the trunk, checkpointed if asked for."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            # a compiled graph takes no contexts, and repeats no change of a buffer
            contexts = {} if torch.compiler.is_compiling() else {"context_fn": lambda: (nullcontext(), _kept_statistics(self))}
            return checkpoint(block, *args, use_reentrant=False, **contexts)
        return block(*args)

    def new_classifier(self, width: int) -> nn.Module:
        """A final layer for `num_classes`, of which there may be none."""
        self.head_width = width
        return nn.Linear(width, self.num_classes) if self.num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        """A new head of freshly drawn weights; 0 classes leave the pooled features as they are."""
        self.num_classes = num_classes
        like = next(self.parameters())
        for name in self.classifiers:
            parent, _, leaf = name.rpartition(".")
            head = self.new_classifier(self.head_width).to(like.device, like.dtype)
            if isinstance(head, nn.Linear):
                self.initialise_classifier(head)
            setattr(self.get_submodule(parent), leaf, head)

    def initialise_classifier(self, head: nn.Linear) -> None:
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    # attention, as it is

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Attention weights [B, h, queries, keys] of every attention layer, by the layer's name, in the order of computation."""
        found: dict[str, Tensor] = {}

        def record(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                found[name] = module.attention_weights(*args, **kwargs)

            return hook

        layers = [(name, module) for name, module in self.named_modules() if hasattr(module, "attention_weights")]
        if not layers:
            check.fail(type(self).__name__, "model", "have attention layers", "none", "attention maps exist for transformers only")
        handles = [module.register_forward_pre_hook(record(name), with_kwargs=True) for name, module in layers]
        try:
            self.forward_features(x)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def get_attention(self, x: Tensor, layer: int = -1) -> Tensor:
        """[B, h, H, W]: how the class token weighs the patches in one of the layers where it takes part."""
        if not self.prefix_tokens:
            check.fail(type(self).__name__, "model", "have a class token", "none", "attention_maps(x) gives every layer's weights")
        maps = [weights for name, weights in self.attention_maps(x).items() if self.sees_class_token(name)]
        rows, columns = self.grid(x)
        # the patches are the last keys; whether the class token is one itself depends on the family
        return maps[layer][:, :, 0, -rows * columns :].unflatten(-1, (rows, columns))

    def sees_class_token(self, layer: str) -> bool:
        return True

    def grid(self, x: Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of images x."""
        raise NotImplementedError

    # checkpoints

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names and layouts of other codes turned into this model's. Foreign keys that mean nothing here stay, and are reported."""
        return state

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        """Carry tensors over to this model's image size, in place; the names of those changed."""
        return ()


def _check(config: Config) -> None:
    name = type(config).__name__
    if config.num_classes < 0:
        check.fail(name, "num_classes", "be 0 or more", config.num_classes, "0 gives pooled features")
    if config.in_channels < 1:
        check.fail(name, "in_channels", "be 1 or more", config.in_channels, "3 for colour images")
    if min(config.size) < 1:
        check.fail(name, "img_size", "be positive", config.size)


@contextmanager
def _kept_statistics(model: nn.Module) -> Iterator[None]:
    """Recomputed activations are no new batch: the running statistics of batch normalisation have seen it already."""
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    before = [(norm.momentum, getattr(norm, "num_batches_tracked", None)) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class FeatureMaps(nn.Module):
    """The trunk of a model: images -> list of maps [B, D, H, W]. `channels` and `reductions` describe them."""

    def __init__(self, model: Model):
        super().__init__()
        model.keep_maps_only()
        self.model = model
        self.channels = [info.channels for info in model.maps_info]
        self.reductions = [info.reduction for info in model.maps_info]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_maps(x)
