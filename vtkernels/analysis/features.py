"""How classes lie in the space of features that a model's classifier sees."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._model import batches, evaluating, penultimate
from vtkernels.analysis._progress import progress
from vtkernels.analysis._result import Result
from vtkernels.analysis._subject import SubjectOptions
from vtkernels.analysis._toy import fit
from vtkernels.losses import CenterLoss

# of t-SNE: what is computed first, and how many neighbours weigh
COMPONENTS, PERPLEXITY, ITERATIONS = 50, 30.0, 1000


@dataclass(frozen=True, kw_only=True)
class Options(SubjectOptions):
    """Options of `features`.

    Attributes:
        other: a second model, name or run folder, to put beside the first.
        center_loss: its weight, such as 0.003. What is drawn is then the model after a short training on as many training images without center
            loss, and after the same training with it.
        updates: steps of that training.
        other_checkpoint: its weights, if it is given by name.
        labels: what the pictures call the two.
        perplexity: how many neighbours of an image weigh in t-SNE.
    """

    samples: int | None = 1000
    other: str | None = None
    other_checkpoint: str | None = None
    center_loss: float | None = None
    updates: int = 300
    labels: tuple[str, ...] = ()
    perplexity: float = PERPLEXITY


@dataclass
class Embedding:
    """One model's features.

    Attributes:
        points: [N, 2] of t-SNE; their axes and distances between far groups mean nothing.
        ratio: mean distance of an image from its class's centre over the mean distance between two centres, in all dimensions: the smaller,
            the tighter the classes.
        kept: share of each image's nearest neighbours in feature space that are near in the picture, by scikit-learn's trustworthiness, 1 at best.
        same_class: share of images whose nearest neighbour in feature space is of their class.
        dimensions: of the features.
    """

    label: str
    points: np.ndarray
    ratio: float
    kept: float
    same_class: float
    dimensions: int


@dataclass
class FeaturesResult(Result):
    name: ClassVar[str] = "features"
    targets: np.ndarray
    classes: list[str]
    embeddings: list[Embedding] = field(default_factory=list)

    def summary(self) -> str:
        return "\n".join(
            f"{one.label}: distance within a class over between classes {one.ratio:.3f}; nearest neighbour of the same class {one.same_class:.1%}; "
            f"{one.dimensions} features of {len(one.points)} images"
            for one in self.embeddings
        )

    def draw(self) -> dict[str, Any]:
        count = len(self.embeddings)
        if not count:
            return {}
        figure, axes = plots.subplots(1, count, width=5.6 * count + 0.9, height=5.6, squeeze=False)
        present = np.unique(self.targets)
        for axis, one in zip(axes[0], self.embeddings, strict=True):
            for index, label in enumerate(present):
                points = one.points[self.targets == label]
                axis.scatter(*points.T, s=24, linewidths=0, alpha=0.75, **_mark(index))
                # colours alone would not tell more than a few classes apart
                if len(present) <= 30:
                    place = np.median(points, 0)
                    text = axis.text(*place, self.classes[label], ha="center", va="center", fontsize=11, weight="bold")
                    _outline(text)
            axis.set_title(f"{one.label}\nwithin over between classes {one.ratio:.2f}, nearest neighbour alike {one.same_class:.0%}")
            plots.images_only(axis)
        figure.suptitle(f"t-SNE of the features of {len(self.targets)} images; axes have no unit", fontsize=10)
        return {self.name: figure}


def run(options: Options) -> FeaturesResult:
    subject = options.load()
    classes = list(subject.dataset.classes)
    if options.center_loss is not None:
        if options.other is not None:
            fail("features", "other", "be left out where center_loss is given", options.other, "the model is compared with itself")
        models = with_and_without_center_loss(options)
        found = compare(models, subject.loader, classes, perplexity=options.perplexity, seed=options.seed)
        found.complete &= len(models) == 2
        return found
    models = {_label(options, 0): subject.model}
    if options.other is not None:
        second = options.load_model(len(classes), options.other, options.other_checkpoint).to(subject.device)
        models[_label(options, 1)] = second
    return compare(models, subject.loader, classes, perplexity=options.perplexity, seed=options.seed)


def with_and_without_center_loss(options: Options) -> dict[str, torch.nn.Module]:
    """The model after two trainings from the same weights on the same batches, by what the picture calls them; one if it was interrupted."""
    if not options.center_loss > 0:
        fail("features", "center_loss", "be positive", options.center_loss, "0.003 is the paper's")
    start, loader, *_ = replace(options, split="train").load()
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    width = penultimate(start, images[:1])[0].shape[1]
    found: dict[str, torch.nn.Module] = {}
    with progress("features: training", 2) as steps:
        for label, weight in (("without center loss", 0.0), (f"center loss of weight {options.center_loss:g}", options.center_loss)):
            pull = CenterLoss(start.num_classes, width, weight=weight).to(images.device) if weight else None
            with torch.random.fork_rng():
                torch.manual_seed(options.seed)
                found[label] = fit(copy.deepcopy(start), images, labels, updates=options.updates, lr=1e-3, of_features=pull)
            steps.advance(label)
    if not found:
        raise KeyboardInterrupt
    return found


def compare(
    models: dict[str, torch.nn.Module], loader: Iterable[Any], classes: list[str] | None = None, *, perplexity: float = PERPLEXITY, seed: int = 0
) -> FeaturesResult:
    """The features of several models, by what the picture calls them, on the same images in the same order."""
    result = FeaturesResult(np.zeros(0, int), classes or [], complete=False)
    with progress("features", len(models)) as steps:
        for label, model in models.items():
            features, targets = extract(model, loader)
            if len(np.unique(targets)) < 2:
                fail("features", "data", "hold images of two classes or more", f"class {targets[0]} alone", "take another split, or more samples")
            if result.embeddings and not np.array_equal(targets, result.targets):
                fail("features", "loader", "give the same images in the same order each time", "others", "create_loader(..., train=False) does")
            result.targets = targets
            result.classes = classes or [str(index) for index in range(targets.max() + 1)]
            points, kept = embed(features, perplexity, seed)
            quality = distance_ratio(features, targets), kept, same_class_share(features, targets)
            result.embeddings.append(Embedding(label, points, *quality, features.shape[1]))
            steps.advance(label)
    result.complete = not steps.interrupted
    return result


@torch.no_grad()
def extract(model: torch.nn.Module, loader: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, D] in float64, targets [N]): what the classifier is given in eval mode."""
    features, targets = [], []
    with evaluating(model):
        for images, labels in batches(model, loader, "features"):
            features.append(penultimate(model, images)[0].double().cpu())
            targets.append(labels.cpu())
    found = torch.cat(features)
    if not found.isfinite().all():
        fail("features", "features", "be finite", "NaN or infinity", "does the model have NaN weights?")
    return found.numpy(), torch.cat(targets).numpy()


def embed(features: np.ndarray, perplexity: float = PERPLEXITY, seed: int = 0) -> tuple[np.ndarray, float]:
    """(points [N, 2] of t-SNE after PCA, how far they can be trusted). The same seed gives the same points."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE, trustworthiness
    except ImportError:
        raise ImportError("features: expected scikit-learn, got no such package; try pip install 'vtkernels[data]'") from None
    count = len(features)
    if count < 5:
        fail("features", "data", "hold at least 5 images", count, "take more samples")
    if not perplexity > 0:
        fail("features", "perplexity", "be positive", perplexity, f"{PERPLEXITY:.0f} is common")
    # PCA would divide by the variance, of which equal images have none
    spread = features - features.mean(0)
    if not spread.any():
        fail("features", "features", "differ between images", "the same for all", "does the model look at its input?")
    reduced = PCA(min(COMPONENTS, *features.shape), random_state=seed).fit_transform(spread)
    tsne = TSNE(
        perplexity=min(perplexity, (count - 1) / 3),
        init="pca" if reduced.shape[1] > 1 else "random",
        learning_rate=max(count / 12, 50.0),
        max_iter=ITERATIONS,
        random_state=seed,
    )
    points = tsne.fit_transform(reduced)
    return points, float(trustworthiness(features, points, n_neighbors=min(5, (count - 1) // 2)))


def distance_ratio(features: np.ndarray, targets: np.ndarray) -> float:
    """Mean distance of an image from its class's centre over the mean distance between two centres."""
    labels = np.unique(targets)
    if len(labels) < 2:
        fail("distance_ratio", "targets", "be of two classes or more", len(labels))
    centres = np.stack([features[targets == label].mean(0) for label in labels])
    within = np.linalg.norm(features - centres[np.searchsorted(labels, targets)], axis=1).mean()
    first, second = np.triu_indices(len(labels), 1)
    between = np.linalg.norm(centres[first] - centres[second], axis=1).mean()
    return float(within / between) if between else float("inf")


def same_class_share(features: np.ndarray, targets: np.ndarray) -> float:
    """Share of images whose nearest neighbour is of their class."""
    squares = (features**2).sum(1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    return float((targets[distances.argmin(1)] == targets).mean())


def _label(options: Options, index: int) -> str:
    if index < len(options.labels):
        return options.labels[index]
    return f"{'first' if index == 0 else 'second'} model" if options.other == options.model else (options.model, options.other)[index]


def _mark(index: int) -> dict[str, str]:
    """Colour and marker of a class; the pairs differ for as many classes as there are pairs."""
    colors, markers = plots.SERIES, plots.MARKERS
    return {"color": colors[index % len(colors)], "marker": markers[(index + index // len(colors)) % len(markers)]}


def _outline(text: Any) -> None:
    from matplotlib import patheffects

    text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


__all__ = ["Embedding", "FeaturesResult", "Options", "compare", "distance_ratio", "embed", "extract", "run", "same_class_share"]
