"""Training of all arms by all seeds. What is done lies on disk, one file a run, and is not done again unless its recipe has changed."""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.arms import seeded
from benchmarks.claims.claim import Arm, Claim, Metrics, by_name
from benchmarks.report import slug
from vtkernels.recipes import Distillation, Recipe, RecipeError, build
from vtkernels.recipes._json import decoded, encoded
from vtkernels.train import NonFiniteLoss


class Session:
    """The runs of one claim at one scale.

    Args:
        folder: of their files.
        checkpoints: whether single runs go on where they were stopped, too.
    """

    def __init__(self, claim: Claim, folder: Path, *, checkpoints: bool = False, device: torch.device | None = None):
        self.claim, self.folder, self.checkpoints, self.device = claim, folder, checkpoints, device

    def run(self, seeds: Iterable[int], only: str = "", minutes: float | None = None) -> dict[str, dict[int, Metrics]]:
        """Whatever is missing; all arms of a seed before the next, so that pairs are complete at any time.

        Args:
            only: a part of the names of arms that are run; the others are taken as far as they are there.
            minutes: after which no further run begins.
        """
        results: dict[str, dict[int, Metrics]] = {arm.name: {} for arm in self.claim.arms}
        until = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        for seed in seeds:
            for arm in self.claim.arms:
                found = self.known(arm, seed)
                if found is None and only in arm.name and time.monotonic() < until:
                    found = self.train(arm, seed)
                    print(f"seed {seed}, {arm.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
                if found is not None:
                    results[arm.name][seed] = found
        return results

    def known(self, arm: Arm, seed: int) -> Metrics | None:
        """Of this claim, or of one beside it that has trained the same; weights that are kept must be this claim's own."""
        elsewhere = [] if arm.keep else sorted(self.folder.parent.glob(f"*/{slug(arm.name)}/{seed}/result.json"))
        teacher = by_name(self.claim.arms)[arm.teacher] if arm.teacher else None
        taught = {"recipe": teacher is not None, "teacher": teacher is not None and teacher.teacher is not None}
        meant = bare(self.meaning(arm, seed), taught)
        for path in [self.place(arm, seed) / "result.json", *elsewhere]:
            if path.is_file() and bare(completed((written := json.loads(path.read_text()))["of"]), taught) == meant:
                return written["metrics"]
        return None

    def train(self, arm: Arm, seed: int) -> Metrics:
        recipe, place = self.recipe(arm, seed), self.place(arm, seed)
        if (place / "recipe.json").is_file() and Recipe.load(place) != recipe:
            # a run of another recipe, which cannot go on as this one
            shutil.rmtree(place)
        place.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        try:
            metrics = arm.train(recipe, place, self.taught(arm, seed), self.device) if arm.train else self.fit(arm, recipe, place)
        except NonFiniteLoss:
            # counts as chance: left out, it would be forgiven
            metrics = {"top1": 100 / len(recipe.data.datasets()[0].classes), "diverged": 1.0}
        content = {"of": self.meaning(arm, seed), "metrics": metrics, "seconds": round(time.perf_counter() - started, 2)}
        beside = place / "result.partial"
        beside.write_text(json.dumps(content, indent=1) + "\n")
        beside.replace(place / "result.json")
        return metrics

    def fit(self, arm: Arm, recipe: Recipe, place: Path) -> Metrics:
        trainer = build(recipe, folder=place if self.checkpoints or arm.keep else None, device=self.device)
        if trainer.files is not None and trainer.files.holds_run:
            trainer.resume()
        trainer.fit()
        return arm.measure(trainer, recipe)

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        recipe, taught = replace(seeded(arm.recipe, seed), name=f"{self.claim.name}: {arm.name}"), self.taught(arm, seed)
        if taught is None or arm.train:
            return recipe
        if isinstance(recipe.task, Distillation):
            return replace(recipe, task=replace(recipe.task, teacher=str(taught)))
        return replace(recipe, model=replace(recipe.model, checkpoint=str(taught)))

    def taught(self, arm: Arm, seed: int) -> Path | None:
        """Where the run of the arm's teacher lies."""
        return self.place(by_name(self.claim.arms)[arm.teacher], seed) if arm.teacher else None

    def meaning(self, arm: Arm, seed: int) -> dict[str, Any]:
        """What a result depends on."""
        teacher = self.recipe(by_name(self.claim.arms)[arm.teacher], seed) if arm.teacher else None
        return {"recipe": encoded(self.recipe(arm, seed)), "teacher": encoded(teacher) if teacher else None, "measure": arm.measured}

    def place(self, arm: Arm, seed: int) -> Path:
        return self.folder / slug(arm.name) / str(seed)

    def seconds(self) -> float:
        """Of all runs that are done."""
        return sum(json.loads(path.read_text())["seconds"] for path in self.folder.glob("*/*/result.json"))


def completed(meaning: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of fields that recipes have had only since it was written: a new field's default changes nothing."""
    try:
        return {name: encoded(decoded(Recipe, entry, "")) if isinstance(entry, dict) else entry for name, entry in meaning.items()}
    except RecipeError:
        # of a field or class that is no more: another recipe
        return meaning


def bare(meaning: dict[str, Any], taught: dict[str, bool]) -> dict[str, Any]:
    """Without the claim's name, and of those that are taught without where their teacher's run lies: neither changes a result."""
    return meaning | {name: nameless(meaning[name], taught[name]) for name in taught if meaning[name] is not None}


def nameless(recipe: dict[str, Any], taught: bool) -> dict[str, Any]:
    places = {"task": recipe["task"] | {"teacher": None}, "model": recipe["model"] | {"checkpoint": None}} if taught else {}
    return recipe | {"name": None} | places
