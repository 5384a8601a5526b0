"""What `vtkernels eval` is asked, and what a run's folder answers for it."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vtkernels._core.check import fail
from vtkernels.evaluation.corruption import ALEXNET_ERRORS
from vtkernels.models import list_models, model_config

Scalar = bool | int | float | str
# fields that may differ when an evaluation is continued: they choose what is measured next and how fast, not what a number means
_FREE = {"out", "restart", "batch_size", "workers", "device", "attack", "real", "v2", "renditions", "natural"}
_FREE |= {"corruptions", "corruption_path", "corruption_names", "severities"}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Which model, on which images.

    Attributes:
        model: a model's name, or the folder of a training run, which then answers for whatever is left out.
        checkpoint: weights: a file, a folder, hf-hub:... or timm:...
        model_options: further fields of the model's configuration.
        data: a data set's name, or a folder SPLIT/CLASS/IMAGE.
        path: folder with the set's files; digits and shapes need none.
        split: what is evaluated; None takes test or val, whichever the set has.
        data_options: of the single set, such as domain of domainnet.
        limit: only so many images, spread evenly over the set.
        size: edge of the images that the model sees; None takes the model's own.
        crop: share of the resized image that the model sees, on each axis; None takes 0.875, or 1 for images of up to 64 pixels.
        squash: gives up the image's shape rather than cutting it.
        normalize: by the "set"'s own mean and deviation, by those of "imagenet", to -1..1 ("half"), or not at all ("none").
        corruptions: evaluate corrupted images too: "generated" from the set, or the published "files".
        corruption_path: folder of the files: of ImageNet-C for sets of 1000 classes, of CIFAR-10-C or CIFAR-100-C.
        corruption_names: which; none means all 15 and the 4 extra ones.
        severities: which.
        real: folder with ImageNet's validation images and real.json.
        v2: folder of ImageNet-V2.
        renditions: folder of ImageNet-R.
        natural: folder of ImageNet-A.
        valid_split: a split of the same set; fits the temperature, and with negatives the thresholds of classes.
        negatives: a data set of images of no class, by name or folder, for open-set rejection.
        negatives_path: folder with that set's files.
        negatives_split: of that set.
        threshold_precision: what thresholds shall reach for each class; None chooses them by the highest F1.
        attack: accuracy under "fgsm" or "pgd" too.
        epsilon: largest change of a pixel in the attack, of 1.
        steps: of pgd.
        precision: "bfloat16" and "float16" are autocast.
        device: None takes a GPU if there is one.
        batch_size: images of a pass.
        workers: processes that read images.
        seed: of corruptions and attacks.
        out: folder of results; what is done is kept there, and the same command goes on. None: "evaluation", in the run's folder if there is one.
        restart: begin anew in a folder that holds another evaluation.
    """

    model: str
    checkpoint: str | None = None
    model_options: dict[str, Scalar] = field(default_factory=dict)
    data: str | None = None
    path: Path | None = None
    split: str | None = None
    data_options: dict[str, Scalar] = field(default_factory=dict)
    limit: int | None = None
    size: int | None = None
    crop: float | None = None
    squash: bool = False
    normalize: Literal["set", "imagenet", "half", "none"] | None = None
    corruptions: Literal["none", "generated", "files"] = "none"
    corruption_path: Path | None = None
    corruption_names: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    real: Path | None = None
    v2: Path | None = None
    renditions: Path | None = None
    natural: Path | None = None
    valid_split: str | None = None
    negatives: str | None = None
    negatives_path: Path | None = None
    negatives_split: str = "test"
    threshold_precision: float | None = None
    attack: Literal["none", "fgsm", "pgd"] = "none"
    epsilon: float = 4 / 255
    steps: int = 7
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    batch_size: int = 64
    workers: int = 0
    seed: int = 0
    out: Path | None = None
    restart: bool = False

    def resolved(self) -> "EvaluationOptions":
        """With what the run's folder says, and refused where options do not go together."""
        options = self._of_run() if (Path(self.model) / "recipe.json").is_file() else self
        options._check()
        return replace(options, out=options.out or Path("evaluation"))

    def meaning(self) -> dict[str, Any]:
        """What numbers depend on: an evaluation goes on only with the same."""
        content = {name: value for name, value in vars(self).items() if name not in _FREE}
        if self.checkpoint is not None:
            weights = Path(self.checkpoint)
            weights = weights / "model.safetensors" if weights.is_dir() else weights
            content["weights"] = [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else None
        return json.loads(json.dumps(content, default=str))

    def _of_run(self) -> "EvaluationOptions":
        folder = Path(self.model)
        try:
            recipe = json.loads((folder / "recipe.json").read_text())
            model, data = recipe["model"], recipe["data"]
            known = {
                "checkpoint": str(folder / "weights"),
                "data": data["name"],
                "path": Path(data["path"]) if data.get("path") else None,
                "split": data.get("valid_split"),
                "size": data.get("size"),
                "crop": data.get("eval_crop"),
                "normalize": data.get("normalize"),
                "out": folder / "evaluation",
            }
            same_set = self.data in (None, data["name"])
            changes = {name: value for name, value in known.items() if getattr(self, name) is None and (same_set or name not in ("path", "split"))}
            changes["data_options"] = {**(data.get("options") or {}), **self.data_options} if same_set else self.data_options
            changes["model_options"] = {**(model.get("options") or {}), **self.model_options}
            changes["squash"] = self.squash or bool(data.get("squash"))
            return replace(self, model=model["name"], **changes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"vtkernels eval: {folder / 'recipe.json'}: expected a run's recipe, got {error!r}; name the model and its checkpoint") from error

    def _check(self) -> None:
        what = "vtkernels eval"
        if self.model not in list_models():
            if Path(self.model).is_dir():
                fail(
                    what,
                    "model",
                    "be a model's name or the folder of a run",
                    f"{self.model}, which holds no recipe.json",
                    "try --model NAME --checkpoint FOLDER",
                )
            if "/" in self.model:
                fail(what, "model", "be a model's name or the folder of a run", self.model, "there is no such folder")
            # which tells names like it
            model_config(self.model)
        if self.data is None:
            fail(what, "data", "be a data set's name or a folder", None, "try --data digits")
        unknown = [name for name in self.corruption_names if name not in ALEXNET_ERRORS]
        if unknown:
            fail(what, "corruption_names", f"be among {', '.join(ALEXNET_ERRORS)}", unknown[0])
        if not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            fail(what, "severities", "be some of 1, 2, 3, 4, 5", self.severities)
        if self.corruptions == "files" and self.corruption_path is None:
            fail(what, "corruption_path", "be the folder of ImageNet-C's or CIFAR-C's files", None, "or try --corruptions generated")
        if self.batch_size < 1 or self.workers < 0 or self.seed < 0:
            fail(what, "batch_size, workers and seed", "be at least 1, 0 and 0", (self.batch_size, self.workers, self.seed))
        if self.limit is not None and self.limit < 1:
            fail(what, "limit", "be at least 1", self.limit)
        if self.crop is not None and not 0 < self.crop <= 1:
            fail(what, "crop", "be above 0 and at most 1", self.crop)
        if not 0 <= self.epsilon <= 1 or self.steps < 1:
            fail(what, "epsilon and steps", "be a part of 1, and at least 1", (self.epsilon, self.steps), "pixels lie in 0..1: try --epsilon 0.0157 (4/255)")
        if self.threshold_precision is not None:
            if not 0 < self.threshold_precision <= 1:
                fail(what, "threshold_precision", "be above 0 and at most 1", self.threshold_precision)
            if self.valid_split is None or self.negatives is None:
                fail(what, "threshold_precision", "come with a validation set and negatives", "one without", "try --valid-split val --negatives NAME")
