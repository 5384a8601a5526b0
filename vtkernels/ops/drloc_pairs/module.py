"""The head of dense relative localisation: pairs, a small MLP, and its loss, under the parameter names of the published code."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.ops.drloc_pairs import losses
from vtkernels.ops.drloc_pairs.op import as_map, drloc_pairs

MODES = ("l1", "ce", "cbr")
REFERENCES = ("paper", "released")
FIRST_LAYERS = ("auto", "pairs", "positions")


class DrlocPrediction(NamedTuple):
    """What the head makes of a map. `prediction`: [B, m, 2], or logits ([B, m, K of rows], [B, m, K of columns])."""

    prediction: Tensor | tuple[Tensor, Tensor]
    targets: Tensor  # [B, m, 2] in the prediction's units: distances, or classes
    positions: Tensor  # [B, m, 4]


class DrlocHead(nn.Module):
    """Predicts how far apart pairs of positions of a feature map are, and returns the loss of that, a float32 scalar.

    Each image has `num_pairs` pairs of its own, drawn anew in training from torch's generator. In eval mode the pairs are
    the same on every call and no random number is consumed; a loss that nobody asks for need not be computed at all.

    Args:
        dim: channels C of the features.
        num_pairs: pairs of an image.
        mode: l1 (regression), ce (classes) or cbr (cycle-back regression).
        target: abs, or signed (first minus second).
        reference: paper, or released for what the published code does instead: l1 targets count positions (signed ones from 0)
            and its mean runs over both coordinates, which halves it. The other modes are the same.
        grid: rows and columns of the largest map, which ce and cbr need for the number of their classes.
        hidden: width of the MLP.
        first_layer: what the first layer is applied to: pairs; positions, each once, whose halves are then added pairwise;
            or auto, whichever costs less: positions where there are more pairs than positions. The results differ by rounding.
        init: trunc_normal (0.02, biases 0) as Swin and T2T-ViT initialise it, or default for torch's own, as the other models.
        layout, backend: as in `vtkernels.drloc_pairs`; of layout bnc, `map_size` is the rows and columns.
    """

    def __init__(
        self,
        dim: int,
        num_pairs: int = 64,
        mode: str = "l1",
        *,
        target: str = "abs",
        reference: str = "paper",
        grid: int | tuple[int, int] | None = None,
        hidden: int = 512,
        first_layer: str = "auto",
        init: str = "trunc_normal",
        layout: str = "bhwc",
        map_size: tuple[int, int] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value, allowed in (
            ("mode", mode, MODES),
            ("target", target, ("abs", "signed")),
            ("reference", reference, REFERENCES),
            ("first_layer", first_layer, FIRST_LAYERS),
            ("init", init, ("trunc_normal", "default")),
        ):
            if value not in allowed:
                check.fail("DrlocHead", name, f"be one of {', '.join(allowed)}", repr(value), "leave it out for the default")
        if not isinstance(num_pairs, int) or num_pairs < 1:
            check.fail("DrlocHead", "num_pairs", "be a positive int", repr(num_pairs), "the paper uses 64")
        self.dim, self.num_pairs, self.mode, self.target, self.reference = dim, num_pairs, mode, target, reference
        self.first_layer, self.layout, self.map_size, self.backend = first_layer, layout, map_size, backend
        factory = {"device": device, "dtype": dtype}
        layers = [nn.Linear(2 * dim, hidden, **factory), nn.ReLU(), nn.Linear(hidden, hidden, **factory), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, 2 if mode == "l1" else hidden, **factory))
        if mode == "l1":
            self.grid, self.unshared = None, None
        else:
            if grid is None:
                check.fail("DrlocHead", "grid", f"be given for mode {mode}", None, "the rows and columns of the largest map, such as 7")
            self.grid = check.pair("DrlocHead", "grid", grid)
            classes = (size if target == "abs" else 2 * size - 1 for size in self.grid)
            self.unshared = nn.ModuleList([nn.Linear(hidden, count, **factory) for count in classes])
        if init == "trunc_normal":
            self.apply(_initialise)

    def forward(self, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """The loss of a map. `positions` [B, m, 4] replace the draw."""
        prediction, targets, _ = self.predict(features, positions)
        if self.mode == "l1":
            return losses.l1(prediction, targets, mean_of_coordinates=self.reference == "released")
        return (losses.ce if self.mode == "ce" else losses.cbr)(prediction, targets)

    def predict(self, features: Tensor, positions: Tensor | None = None) -> DrlocPrediction:
        """Predictions, targets and positions of the pairs."""
        features = as_map(features, self.layout, self.map_size)
        if features.shape[3] != self.dim:
            check.fail("DrlocHead", "features", f"have dim={self.dim} channels", features.shape[3], f"is the layout {self.layout}?")
        size = features.shape[1:3]
        if self.grid is not None and (size[0] > self.grid[0] or size[1] > self.grid[1]):
            check.fail("DrlocHead", "the map", f"be no larger than grid={self.grid}", f"{size[0]} x {size[1]}", "each distance needs a class of its own")
        hidden, targets, positions = self._first_layer(features, positions)
        # torch's order of modules, the first applied already
        prediction = self.layers[1:](hidden)
        if self.unshared is not None:
            prediction = tuple(layer(prediction) for layer in self.unshared)
        if self.target == "signed" and not self._normalize:
            # from 0, as classes are
            targets = targets + targets.new_tensor([size[0] - 1, size[1] - 1])
        return DrlocPrediction(prediction, targets, positions)

    @property
    def _normalize(self) -> bool:
        return self.mode == "l1" and self.reference == "paper"

    def _first_layer(self, features: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """W [x_i; y_j] + b of the pairs [B, m, hidden], targets and positions."""
        first = self.layers[0]
        pairs = self.num_pairs if positions is None else positions.shape[1]
        options = {"num_pairs": pairs, "target": self.target, "normalize": self._normalize, "backend": self.backend}
        options |= {"positions": positions} if positions is not None else {} if self.training else {"seed": 0}
        if self.first_layer == "pairs" or (self.first_layer == "auto" and features.shape[1] * features.shape[2] >= pairs):
            rows, targets, positions = drloc_pairs(features, **options)
            return first(rows), targets, positions
        # one channel is the cheapest way to have the draw alone
        _, targets, positions = drloc_pairs(features[..., :1].detach(), **options)
        # W [x; y] = W_a x + W_b y: both halves of every position, as if twice as many columns had half of them each
        halves = first.weight.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 1)
        projected = F.linear(features, halves).unflatten(3, (2, -1)).flatten(2, 3)
        twice = positions * positions.new_tensor([1, 2, 1, 2]) + positions.new_tensor([0, 0, 0, 1])
        rows, _, _ = drloc_pairs(projected, positions=twice, backend=self.backend)
        a, b = rows.chunk(2, -1)
        return a + b + first.bias.to(a.dtype), targets, positions

    def extra_repr(self) -> str:
        return f"{self.dim}, num_pairs={self.num_pairs}, mode={self.mode}, target={self.target}, reference={self.reference}"


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
