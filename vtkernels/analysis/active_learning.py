"""Which images are worth a label: pool-based active learning, and how much each way of choosing gains over chance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._model import evaluating, penultimate
from vtkernels.analysis._progress import progress
from vtkernels.analysis._result import Result
from vtkernels.analysis._toy import fit, images_of, stratified
from vtkernels.models import create_model

# a function of labelled images, their labels and a seed, which gives a trained classifier
Train = Callable[[Tensor, Tensor, int], nn.Module]
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `active_learning`.

    Attributes:
        strategies: ways of choosing, of STRATEGIES.
        initial: images that are labelled first, as many of each class as can be.
        batch: images labelled in each round.
        rounds: of choosing; one more training follows the last.
        seeds: runs of each strategy; a run starts with the same labels for all strategies.
        pool: images that can be chosen from, drawn by the seed; None takes the whole training split.
        model: what is trained, from scratch in each round: "cnn", a small network with dropout, or a name of `vtkernels.list_models()`.
        updates: steps of each training, however many images are labelled.
        passes: forward passes with dropout, of BALD.
        data, root: the set, whose splits "train" and "test" are taken, and the folder of its files.
        size: edge of the images.
        device: where to compute; default a GPU if there is one.
        out: folder for the results.
    """

    strategies: tuple[str, ...] = ("random", "least_confidence", "entropy", "margin", "bald", "core_set")
    initial: int = 20
    batch: int = 20
    rounds: int = 6
    seeds: int = 3
    pool: int | None = None
    model: str = "cnn"
    updates: int = 100
    passes: int = 20
    data: str = "digits"
    root: str | None = None
    size: int = 8
    device: str | None = None
    out: str = "analysis"


# what an image is worth, from probabilities [N, K]


def least_confidence(probabilities: Tensor) -> Tensor:
    """1 - the largest probability."""
    return 1 - probabilities.amax(-1)


def margin(probabilities: Tensor) -> Tensor:
    """The largest probability minus the second: the smaller, the more a label tells."""
    first, second = probabilities.topk(2, -1).values.unbind(-1)
    return first - second


def entropy(probabilities: Tensor) -> Tensor:
    """In nats."""
    return torch.special.entr(probabilities).sum(-1)


def bald(passes: Tensor) -> Tensor:
    """What a label would tell about the weights: entropy of the mean over the passes [T, N, K] minus the mean of their entropies."""
    return (entropy(passes.mean(0)) - entropy(passes).mean(0)).clamp_min(0)


def k_centre(features: Tensor, labelled: Tensor, count: int) -> Tensor:
    """Indices of `count` images, each the farthest from all that are labelled or chosen before it; `labelled` are indices, too."""
    chosen: list[int] = []
    # nothing is near where nothing is labelled: the first image is then the farthest
    nearest = features.new_full((len(features),), float("inf"))
    for index in labelled.tolist():
        nearest = torch.minimum(nearest, (features - features[index]).norm(dim=-1))
    # an image chosen once is never the farthest again, even among duplicates
    nearest[labelled] = -1.0
    for _ in range(count):
        index = int(nearest.argmax())
        chosen.append(index)
        nearest = torch.minimum(nearest, (features - features[index]).norm(dim=-1))
        nearest[index] = -1.0
    return torch.tensor(chosen, dtype=torch.long)


class Pool(NamedTuple):
    """What a strategy may look at: a trained model, all images, indices of the labelled ones and of the others, and the rest."""

    model: nn.Module
    images: Tensor
    labelled: Tensor
    unlabelled: Tensor
    passes: int
    generator: torch.Generator


def _best(score: Callable[[Tensor], Tensor], largest: bool = True) -> Callable[[Pool, int], Tensor]:
    def choose(pool: Pool, count: int) -> Tensor:
        values = score(predict(pool.model, pool.images[pool.unlabelled])[0])
        # stable: of equal scores the one with the smaller index
        return pool.unlabelled[values.sort(stable=True, descending=largest).indices[:count]]

    return choose


def _random(pool: Pool, count: int) -> Tensor:
    return pool.unlabelled[torch.randperm(len(pool.unlabelled), generator=pool.generator)[:count]]


def _bald(pool: Pool, count: int) -> Tensor:
    values = bald(dropout_passes(pool.model, pool.images[pool.unlabelled], pool.passes))
    return pool.unlabelled[values.sort(stable=True, descending=True).indices[:count]]


def _core_set(pool: Pool, count: int) -> Tensor:
    return k_centre(predict(pool.model, pool.images)[1], pool.labelled, count)


STRATEGIES: dict[str, Callable[[Pool, int], Tensor]] = {
    "random": _random,
    "least_confidence": _best(least_confidence),
    "entropy": _best(entropy),
    "margin": _best(margin, largest=False),
    "bald": _bald,
    "core_set": _core_set,
}


_LABELS = {"bald": "BALD", "core_set": "core-set"}


# the loop


@dataclass
class ActiveLearningResult(Result):
    """
    Attributes:
        sizes: labelled images at each training.
        accuracy: of each strategy, and each of its runs: accuracy on the test set at each of `sizes`; an interrupted run is shorter.
        chosen: of the same: the indices in the order in which they were labelled.
    """

    name: ClassVar[str] = "active_learning"
    sizes: list[int] = field(default_factory=list)
    accuracy: dict[str, list[list[float]]] = field(default_factory=dict)
    chosen: dict[str, list[list[int]]] = field(default_factory=dict)

    def mean_and_error(self, strategy: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean over the runs at each size that one of them reached, and the mean's standard error: 0 of a single run."""
        runs = self.accuracy[strategy]
        columns = [[run[step] for run in runs if len(run) > step] for step in range(max(map(len, runs), default=0))]
        means = np.array([np.mean(column) for column in columns])
        errors = np.array([np.std(column, ddof=1) / len(column) ** 0.5 if len(column) > 1 else 0.0 for column in columns])
        return means, errors

    def summary(self) -> str:
        lines = []
        for strategy in self.accuracy:
            means, errors = self.mean_and_error(strategy)
            if len(means):
                runs = len(self.accuracy[strategy])
                lines.append(f"{strategy:16} {100 * means[-1]:.1f} +- {100 * errors[-1]:.1f} % with {self.sizes[len(means) - 1]} labels, {runs} runs")
        return "\n".join(lines)

    def draw(self) -> dict[str, Any]:
        figure, axis = plots.subplots(width=7.5, height=4.8)
        count = max(len(self.accuracy), 1)
        step = min(np.diff(self.sizes), default=1)
        for index, (strategy, color, marker) in enumerate(zip(self.accuracy, plots.SERIES, plots.MARKERS, strict=False)):
            means, errors = self.mean_and_error(strategy)
            # side by side, so that bars do not hide each other
            sizes = np.array(self.sizes[: len(means)]) + step * 0.03 * (index - (count - 1) / 2)
            line = "--" if strategy == "random" else "-"
            label = _LABELS.get(strategy, strategy.replace("_", " "))
            axis.errorbar(sizes, 100 * means, 100 * errors, color=color, marker=marker, linestyle=line, capsize=3, label=label)
        runs = max((len(one) for one in self.accuracy.values()), default=0)
        axis.set(xlabel="labelled images", ylabel="accuracy on the test set (%)", title=f"Active learning: mean and standard error of {runs} runs")
        if self.accuracy:
            axis.legend(loc="lower right")
        return {self.name: figure}


def learn(
    train: Train,
    pool: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    strategies: tuple[str, ...] = tuple(STRATEGIES),
    initial: int = 20,
    batch: int = 20,
    rounds: int = 6,
    seeds: int = 3,
    passes: int = 20,
) -> ActiveLearningResult:
    """Train, choose, label, and again, with each strategy.

    Args:
        train: gives a classifier trained from scratch on (images, labels) with a seed.
        pool: (images, labels) to choose from; a strategy sees no label before it asked for it.
        test: (images, labels) that the accuracies are of.
        strategies, initial, batch, rounds, seeds, passes: see `Options`.
    """
    _check(pool, test, strategies, initial, batch, rounds, seeds, passes)
    images, labels = pool
    result = ActiveLearningResult(sizes=[initial + batch * step for step in range(rounds + 1)], complete=False)
    with progress("active learning", seeds * len(strategies) * (rounds + 1)) as steps:
        # one run of each strategy after the other: interrupted early, all have been compared
        for seed in range(seeds):
            start = stratified(labels, initial, seed)
            for strategy in strategies:
                accuracies: list[float] = []
                chosen = start.tolist()
                result.accuracy.setdefault(strategy, []).append(accuracies)
                result.chosen.setdefault(strategy, []).append(chosen)
                generator = torch.Generator().manual_seed(seed)
                for step in range(rounds + 1):
                    labelled = torch.tensor(chosen)
                    model = train(images[labelled], labels[labelled], seed)
                    accuracies.append(float((predict(model, test[0])[0].argmax(-1) == test[1]).float().mean()))
                    steps.advance(f"{strategy} {accuracies[-1]:.1%}")
                    if step < rounds:
                        free = torch.ones(len(images), dtype=torch.bool)
                        free[labelled] = False
                        known = Pool(model, images, labelled, free.nonzero().flatten(), passes, generator)
                        with _own_randomness(seed, step):
                            chosen += STRATEGIES[strategy](known, batch).tolist()
    result.accuracy = {strategy: [run for run in runs if run] for strategy, runs in result.accuracy.items()}
    result.complete = not steps.interrupted
    return result


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(probabilities [N, K] in float64, features [N, D]) in eval mode, on the CPU."""
    with evaluating(model):
        found = [penultimate(model, part.to(_device(model))) for part in images.split(_BATCH)]
    logits = torch.cat([logits for _, logits in found]).double().cpu()
    if not logits.isfinite().all():
        fail("active_learning", "train", "give a model of finite logits", "NaN or infinity", "does its training diverge?")
    return logits.softmax(-1), torch.cat([features for features, _ in found]).double().cpu()


@torch.no_grad()
def dropout_passes(model: nn.Module, images: Tensor, passes: int) -> Tensor:
    """[T, N, K]: probabilities of forward passes with dropout active and all else in eval mode."""
    dropouts = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0]
    if not dropouts:
        fail("bald", "model", "have dropout, whose passes it compares", f"none in {type(model).__name__}", "leave 'bald' out, or create the model with dropout")
    with evaluating(model):
        for module in dropouts:
            module.train()
        parts = [torch.stack([model(part.to(_device(model))) for _ in range(passes)]) for part in images.split(_BATCH)]
    return torch.cat(parts, 1).double().softmax(-1).cpu()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _own_randomness(seed: int, step: int) -> Iterator[None]:
    """Draws inside depend on the place alone, and leave those outside as they would have been."""
    with torch.random.fork_rng():
        torch.manual_seed(1000 * seed + step)
        yield


def _check(pool: Any, test: Any, strategies: Any, initial: int, batch: int, rounds: int, seeds: int, passes: int) -> None:
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown or not strategies:
        fail("active_learning", "strategies", f"be among {', '.join(STRATEGIES)}", ", ".join(unknown) or "none")
    for name, value in {"initial": initial, "batch": batch, "seeds": seeds, "passes": passes}.items():
        if value < 1:
            fail("active_learning", name, "be at least 1", value)
    if rounds < 0:
        fail("active_learning", "rounds", "be at least 0", rounds)
    for name, (images, labels) in {"pool": pool, "test": test}.items():
        if len(images) != len(labels) or not len(images):
            fail("active_learning", name, "hold as many images as labels, at least one", f"{len(images)} and {len(labels)}")
    if len(pool[1].unique()) < 2:
        fail("active_learning", "pool", "hold images of two classes or more", "one class")
    if initial + batch * rounds > len(pool[0]):
        fail("active_learning", "pool", f"hold the {initial + batch * rounds} images that all rounds label", len(pool[0]), "take fewer rounds")


# the default problem


def run(options: Options) -> ActiveLearningResult:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pool, test = (images_of(options.data, split, options.size, options.root) for split in ("train", "test"))
    if options.pool is not None:
        drawn = stratified(pool[1], options.pool, 0)
        pool = pool[0][drawn], pool[1][drawn]
    classes = int(pool[1].max()) + 1
    names = ("strategies", "initial", "batch", "rounds", "seeds", "passes")
    return learn(trainer(options.model, classes, options.size, options.updates, device), pool, test, **{name: getattr(options, name) for name in names})


class SmallNet(nn.Module):
    """Two convolutions, dropout, a hidden layer, dropout, the classifier: what BALD's dropout passes need, and little to train."""

    def __init__(self, channels: int, classes: int, width: int = 32):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Dropout(0.25)
        )
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(16 * width, 64), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.trunk(x)))


def trainer(model: str, classes: int, size: int, updates: int, device: torch.device | str = "cpu") -> Train:
    """Training of a new network, "cnn" or one by name, on all labelled images."""

    def train(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            channels = images.shape[1]
            net = SmallNet(channels, classes) if model == "cnn" else create_model(model, num_classes=classes, img_size=size, in_channels=channels)
            # what suits the small network in so few steps is too much for a transformer
            return fit(net.to(device), images, labels, updates=updates, lr=5e-3 if model == "cnn" else 1e-3)

    return train


__all__ = [
    "STRATEGIES",
    "ActiveLearningResult",
    "Options",
    "Pool",
    "bald",
    "dropout_passes",
    "entropy",
    "k_centre",
    "learn",
    "least_confidence",
    "margin",
    "run",
    "trainer",
]
