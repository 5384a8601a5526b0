"""Where a transformer looks: maps of its class token or of what all tokens look at, rollout, and how far attention reaches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._model import as_of, check_weights, evaluating
from vtkernels.analysis._progress import progress
from vtkernels.analysis._result import Result
from vtkernels.analysis._subject import SubjectOptions
from vtkernels.models import Model
from vtkernels.ops.window_attention.common import Call
from vtkernels.ops.window_attention.reference import to_windows


@dataclass(frozen=True, kw_only=True)
class Options(SubjectOptions):
    """Options of `attention`.

    Attributes:
        samples: images that are drawn; distances are averaged over them as well.
        layer: whose class-token map is drawn, counted among the layers that the class token takes part in.
        heads: so many heads are drawn beside their mean.
    """

    samples: int | None = 6
    layer: int = -1
    heads: int = 3


@dataclass
class Layer:
    """Attention of one layer, in the coordinates of the image.

    Attributes:
        weights: [B, h, queries, keys]; of windows, which then follow each other within an image, [B * windows, h, N, N]. Talking heads have
            negative ones, too, whose size counts.
        grid: (rows, columns) of the patches.
        prefix: tokens among the keys before those of the patches.
        places: [windows, N], the patch of each token of a window; -1 for padding; None where all patches attend to each other.
    """

    name: str
    weights: Tensor
    grid: tuple[int, int]
    prefix: int
    places: Tensor | None = None

    @property
    def between_patches(self) -> bool:
        """Whether patches look at patches, not the class token alone."""
        return self.weights.shape[2] >= self.grid[0] * self.grid[1] or self.places is not None

    def received(self) -> Tensor:
        """[B, h, rows, columns]: how the patches are weighed, averaged over all patches that look at them."""
        rows, columns = self.grid
        if self.places is None:
            patches = rows * columns
            return self.weights[:, :, -patches:, -patches:].mean(2).unflatten(-1, self.grid)
        real = self.places.flatten() >= 0
        # a padded query is no patch: its looking counts for nothing
        weights = self._windows() * (self.places >= 0)[:, None, :, None]
        onto = weights.sum(3).movedim(1, 2).flatten(2)[..., real]
        total = onto.new_zeros(*onto.shape[:2], rows * columns)
        total.index_add_(2, self.places.flatten()[real], onto)
        # the mean over all queries, of which each key is seen by those of its window alone
        return (total / (rows * columns)).unflatten(-1, self.grid)

    def distances(self, reduction: tuple[float, float]) -> Tensor:
        """[B, h]: mean distance in pixels between a patch and those it looks at; what it gives to other tokens is left out."""
        rows, columns = self.grid
        y, x = torch.meshgrid(torch.arange(rows) * reduction[0], torch.arange(columns) * reduction[1], indexing="ij")
        points = torch.stack((y.flatten(), x.flatten()), -1).to(self.weights.device, torch.float64)
        if self.places is None:
            between, all_count = torch.cdist(points, points), torch.ones(len(points), device=points.device)
            # one by one: those of many patches are large
            return torch.stack([_mean_distance(one[:, -len(points) :, -len(points) :].double(), between, all_count) for one in self.weights])
        real = (self.places >= 0).double()
        of_windows = points[self.places.clamp_min(0)]
        weights = self._windows().double() * real[:, None, None, :]
        # mean over windows, each by how many of its tokens are patches
        each = _mean_distance(weights, torch.cdist(of_windows, of_windows)[:, None], real[:, None])
        share = real.sum(-1) / real.sum()
        return (each * share[:, None]).sum(1)

    def full(self) -> Tensor:
        """[B, h, patches, patches] of windows; patches of other windows have weight 0."""
        if self.places is None:
            return self.weights
        patches, windows = self.grid[0] * self.grid[1], self._windows()
        batch, _, heads, _, _ = windows.shape
        found = windows.new_zeros(batch, heads, patches + 1, patches + 1)
        for index, places in enumerate(self.places):
            found[:, :, places[:, None], places[None, :]] += windows[:, index]
        # the last row and column gathered the padding, at index -1
        return found[:, :, :patches, :patches]

    def _windows(self) -> Tensor:
        """[B, windows, h, N, N]"""
        return self.weights.unflatten(0, (-1, len(self.places)))


def _mean_distance(weights: Tensor, distances: Tensor, counted: Tensor) -> Tensor:
    """Over the last two axes: queries, of which `counted` says which count, and keys."""
    weights = weights.abs()
    total = weights.sum(-1)
    mean = (weights * distances).sum(-1) / total.where(total > 0, 1.0)
    return (mean * counted).sum(-1) / counted.sum(-1)


@torch.no_grad()
def layers(model: Model, images: Tensor) -> list[Layer]:
    """Every attention layer's weights in eval mode, in the order of computation, with where its tokens are in the image."""
    if not isinstance(model, Model):
        fail("attention", "model", "be one of vtkernels.create_model", type(model).__name__, "its checkpoint may load: create_model(..., checkpoint=...)")
    check_weights(model, "attention")
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shift = args[1] if len(args) > 1 else kwargs.get("shift_size", 0)
            shapes[name] = tuple(args[0].shape), module.shift_for(args[0].shape[1], args[0].shape[2], shift)

        return hook

    windows = {name: module for name, module in model.named_modules() if hasattr(module, "shift_for")}
    handles = [module.register_forward_pre_hook(look(name), with_kwargs=True) for name, module in windows.items()]
    try:
        with evaluating(model):
            maps = model.attention_maps(images)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, weights in maps.items():
        if not weights.isfinite().all():
            fail("attention", "weights", "be finite", f"NaN or infinity in {name}", "does the model have NaN weights?")
        if name in windows:
            shape, shift = shapes[name]
            found.append(Layer(name, weights, (shape[1], shape[2]), 0, _places(windows[name], shape, shift)))
        elif (size := _grid(model, images, weights.shape[-1])) is not None:
            of_queries = _grid(model, images, weights.shape[-2])
            if of_queries is not None and of_queries[1] == size[1] and of_queries[0] != size[0] and weights.shape[-2] > weights.shape[-1]:
                weights, size = _spread(weights, *of_queries, size[0]), of_queries
            found.append(Layer(name, weights, *size))
    return found


def _spread(weights: Tensor, grid: tuple[int, int], prefix: int, coarse: tuple[int, int]) -> Tensor:
    """[B, h, N, N] of queries that look at a coarser map: what a cell of it is given, its patches share."""
    steps = [-(-fine // few) for fine, few in zip(grid, coarse, strict=True)]
    rows, columns = (torch.arange(edge, device=weights.device) // step for edge, step in zip(grid, steps, strict=True))
    cell = (rows[:, None] * coarse[1] + columns).flatten()
    shared = (weights[..., prefix:] / cell.bincount(minlength=coarse[0] * coarse[1]))[..., cell]
    return torch.cat((weights[..., :prefix], shared), -1)


def _places(module: nn.Module, shape: tuple[int, ...], shift: tuple[int, int]) -> Tensor:
    """[windows, N]: which patch each token of a window is; -1 for padding."""
    device = next(module.parameters()).device
    # patches are counted from 1 on, as what pads them is 0
    numbers = torch.arange(1, 1 + shape[1] * shape[2], device=device).view(1, shape[1], shape[2], 1)
    call = Call(
        qkv=numbers, bias_table=None, bias=None, logit_scale=None, qkv_bias=None, num_heads=1, window=module.window_size, shift=shift, scale=1.0,
        mask_padding=module.options["mask_padding"], shift_first=module.options["shift_first"], dropout_p=0.0, seed=0,
    )  # fmt: skip
    return to_windows(numbers, call)[0, :, :, 0] - 1


def _grid(model: Model, images: Tensor, keys: int) -> tuple[tuple[int, int], int] | None:
    """(rows, columns) of the patches among the keys, and how many tokens come before; None if the keys are no patches of the image."""
    sizes = [model.grid(images)] + [tuple(-(-edge // 2**power) for edge in images.shape[2:]) for power in range(8)]
    for rows, columns in sizes:
        # in CaiT's trunk there are no others yet, and in CvT not before the last stage
        for prefix in (model.prefix_tokens, 0, 1):
            if rows * columns + prefix == keys:
                return (rows, columns), prefix
    return None


def rollout(weights: Iterable[Tensor]) -> Tensor:
    """[B, N, N]: attention followed through the layers from the input on, half of every token staying where it is.

    Args:
        weights: [B, h, N, N] of the layers, from the first on. Heads are averaged; of means that talking heads make negative, the size counts.
    """
    total = None
    for layer in weights:
        mean = layer.mean(1).abs()
        kept = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
        kept = kept / kept.sum(-1, keepdim=True)
        total = kept if total is None else kept @ total
    if total is None:
        fail("rollout", "weights", "be of one layer or more", "none")
    return total


def model_rollout(model: Model, found: list[Layer]) -> Tensor:
    """[B, rows, columns]: what the class token, or without one the mean patch, has gathered from each patch of the last grid.

    Layers of finer grids, which fold the image into tokens, are left out; so are, in a pyramid, all stages before the last.
    """
    last = found[-1].grid
    same = [layer for layer in found if layer.grid == last]
    patches = last[0] * last[1]
    # a class token that joins late, or looks at patches alone, is no key of some layers
    prefix = max(model.prefix_tokens, *(layer.prefix for layer in same))
    tokens = prefix + patches
    total = rollout(_squared(layer.full(), tokens) for layer in same)
    rows = total[:, :1] if prefix else total
    return rows.mean(1)[:, -patches:].unflatten(-1, last)


def _squared(weights: Tensor, tokens: int) -> Tensor:
    """[B, h, tokens, tokens]: tokens that a layer does not change look at themselves."""
    queries, keys = weights.shape[2:]
    if queries == keys == tokens:
        return weights
    full = torch.eye(tokens, dtype=weights.dtype, device=weights.device).repeat(*weights.shape[:2], 1, 1)
    if queries == keys and queries > 1:
        full[:, :, -queries:, -keys:] = weights
    else:
        # the class token alone is changed, as it looks at itself and at all patches
        full[:, :, :queries, -keys:] = weights
    return full


def look(model: Model, images: Tensor, layer: int = -1, found: list[Layer] | None = None) -> tuple[Tensor, str]:
    """([B, h, rows, columns], what it shows): how the class token weighs the patches; without one, how the patches are weighed on average."""
    found = layers(model, images) if found is None else found
    if model.prefix_tokens:
        with_token = [one for one in found if model.sees_class_token(one.name)]
        one = _nth(with_token, layer)
        return one.weights[:, :, 0, -one.grid[0] * one.grid[1] :].unflatten(-1, one.grid), f"what the class token looks at in {one.name}"
    one = _nth(found, layer)
    return one.received(), f"what the patches look at in {one.name}"


def class_token_map(model: Model, images: Tensor, layer: int = -1) -> Tensor:
    """[B, h, rows, columns]: how the class token weighs the patches."""
    if not model.prefix_tokens:
        fail("class_token_map", "model", "have a class token", f"{type(model).__name__}, which has none", "look(model, images) shows what all patches look at")
    return look(model, images, layer)[0]


def _nth(found: list[Layer], index: int) -> Layer:
    if not -len(found) <= index < len(found):
        fail("attention", "layer", f"be one of {len(found)} layers", index, "-1 is the last one")
    return found[index]


@dataclass
class AttentionResult(Result):
    """
    Attributes:
        shown: what `maps` shows.
        maps: [B, h, rows, columns] of one layer.
        rolled: [B, rows, columns] of the rollout.
        distances: of each layer, the mean distance in pixels of each head, averaged over the images.
        images: [B, H, W, 3] in 0..1.
    """

    name: ClassVar[str] = "attention"
    model: str
    shown: str
    maps: np.ndarray
    rolled: np.ndarray
    distances: dict[str, list[float]]
    images: np.ndarray = field(repr=False)
    heads: int = 3

    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        del content["images"]
        return content

    def summary(self) -> str:
        lines = [f"{name}: attention reaches {min(values):.1f} to {max(values):.1f} pixels far" for name, values in self.distances.items()]
        return "\n".join((f"{self.model}: {self.shown}", *lines))

    def draw(self) -> dict[str, Any]:
        return {"attention_maps": self._draw_maps(), "attention_distance": self._draw_distances()}

    def _draw_maps(self) -> Any:
        heads = min(self.heads, self.maps.shape[1])
        titles = ["Image", "Mean of heads", "Rollout", *(f"Head {head}" for head in range(heads))]
        count, columns = len(self.images), len(titles)
        height, width = self.images.shape[1:3]
        figure, axes = plots.subplots(count, columns, width=1.75 * columns, height=1.75 * count * height / width + 0.7, squeeze=False)
        for row, image in enumerate(self.images):
            maps = [None, self.maps[row].mean(0), self.rolled[row], *self.maps[row, :heads]]
            for column, values in enumerate(maps):
                axis = axes[row, column]
                axis.imshow(image if values is None else overlay(image, values), interpolation="nearest")
                plots.images_only(axis)
                if row == 0:
                    axis.set_title(titles[column], fontsize=10)
        figure.suptitle(f"{self.model}: {self.shown} (yellow: most)", fontsize=10)
        return figure

    def _draw_distances(self) -> Any:
        count = len(self.distances)
        figure, axis = plots.subplots(width=max(6.0, 2.2 + 0.34 * count), height=4.4)
        for index, values in enumerate(self.distances.values()):
            axis.plot([index] * len(values), values, linestyle="", marker="o", alpha=0.7, color=plots.BLUE, label="heads" if index == 0 else None)
        means = [np.mean(values) for values in self.distances.values()]
        axis.plot(range(count), means, color=plots.VERMILION, marker="_", markersize=12, linewidth=1.0, label="mean of the heads")
        names = [_short(name) for name in self.distances]
        slanted = {"rotation": 45, "ha": "right"} if sum(map(len, names)) > 40 else {}
        axis.set_xticks(range(count), names, fontsize=9, **slanted)
        axis.set(ylabel="mean distance (pixels)", xlabel="layer", title=f"{self.model}: how far attention reaches")
        axis.set_ylim(0, 1.12 * max((value for values in self.distances.values() for value in values), default=1.0))
        axis.legend(fontsize=9, loc="best")
        return figure


def _short(name: str) -> str:
    """Without what all layers are called alike."""
    return name.removesuffix(".attn").replace("layers.", "").replace("blocks_token_only.", "class ").replace("blocks.", "")


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[H, W, 3]: a map over a greyed image, scaled from its least to its largest value."""
    import matplotlib

    spread = float(values.max() - values.min())
    scaled = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    large = F.interpolate(torch.from_numpy(np.ascontiguousarray(scaled))[None, None].float(), image.shape[:2], mode="bilinear")[0, 0].numpy()
    grey = image.mean(-1, keepdims=True)
    colors = matplotlib.colormaps[plots.SEQUENTIAL](large)[..., :3]
    return np.clip(0.25 * grey + 0.75 * colors, 0, 1)


def run(options: Options) -> AttentionResult:
    subject = options.load()
    name = options.model.rstrip("/").rpartition("/")[2]
    return see(subject.model, subject.loader, subject.dataset.statistics, layer=options.layer, heads=options.heads, name=name)


def see(
    model: Model, loader: Iterable[Any], statistics: tuple[Any, Any] | None = None, *, layer: int = -1, heads: int = 3, name: str = "model"
) -> AttentionResult:
    """Maps, rollout and distances of all images of a loader; `statistics`, (means, deviations), turn them back into pictures."""
    parts: list[tuple[np.ndarray, ...]] = []
    sums: dict[str, Tensor] = {}
    count, shown = 0, ""
    with progress("attention", None) as steps:
        for images in (images for images, _ in loader if len(images)):
            images = as_of(model, images)
            found = layers(model, images)
            maps, shown = look(model, images, layer, found)
            rolled = model_rollout(model, found)
            for one in (layer for layer in found if layer.between_patches):
                pixels = (images.shape[2] / one.grid[0], images.shape[3] / one.grid[1])
                sums[one.name] = sums.get(one.name, 0) + one.distances(pixels).sum(0).cpu()
            count += len(images)
            parts.append((maps.float().cpu().numpy(), rolled.float().cpu().numpy(), pictures(images, statistics)))
            steps.advance()
    if steps.interrupted and not parts:
        raise KeyboardInterrupt
    if not parts:
        fail("attention", "loader", "give at least one image", "none", "is the split empty?")
    maps, rolled, shown_images = (np.concatenate(column) for column in zip(*parts, strict=True))
    distances = {name: (total / count).tolist() for name, total in sums.items()}
    return AttentionResult(name, shown, maps, rolled, distances, shown_images, heads, complete=not steps.interrupted)


def pictures(images: Tensor, statistics: tuple[Any, Any] | None = None) -> np.ndarray:
    """[B, H, W, 3] in 0..1 of normalised images; without statistics each is spread over the whole range."""
    images = images.detach().float().cpu()
    if statistics is not None:
        mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
        images = images * std + mean
    else:
        least, largest = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - least) / (largest - least).clamp_min(1e-12)
    images = images.clamp(0, 1).permute(0, 2, 3, 1)
    return (images if images.shape[-1] == 3 else images.mean(-1, keepdim=True).expand(-1, -1, -1, 3)).numpy()


__all__ = ["AttentionResult", "Layer", "Options", "class_token_map", "layers", "look", "model_rollout", "overlay", "pictures", "rollout", "run", "see"]
