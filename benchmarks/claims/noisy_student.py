"""Is a noisy student above its teacher? On digits with 10 % of the labels, other labels, weights and noise with each seed.

    python benchmarks/claims/noisy_student.py --scale short

Teacher and students are the same model, trained for as many updates, with the same augmentation; accuracy is that of the last weights on the
355 test images, none of which chooses anything. The same command goes on where it was stopped.
"""

import argparse
import json
import math
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vtkernels
from vtkernels.recipes import SelfTraining, get_recipe, self_train

ROOT = Path(__file__).parents[2]
# two-sided 95 % quantiles of Student's t by degrees of freedom
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Scale(NamedTuple):
    epochs: int
    cycles: int


SCALES = {"trial": Scale(20, 1), "short": Scale(40, 3), "full": Scale(120, 3)}


def plan_of(seed: int, scale: Scale) -> SelfTraining:
    recipe = get_recipe("noisy_student_digits")
    # a cycle adds its number to the seed: those of two plans must not meet
    settings = replace(recipe.train, epochs=scale.epochs, eval_every=scale.epochs, seed=1000 * seed)
    recipe = replace(recipe, data=replace(recipe.data, fraction_seed=seed), train=settings)
    return SelfTraining(recipe=recipe, cycles=scale.cycles)


def measured(seed: int, scale: Scale, folder: Path) -> dict[str, Any]:
    result = folder / f"after-{scale.cycles}.json"
    if result.is_file():
        return json.loads(result.read_text())
    rows = self_train(plan_of(seed, scale), folder)
    found = {
        "seed": seed,
        "top1": [row["metrics"]["top1"] for row in rows],
        "pseudo_labels": [row["pseudo_labels"] for row in rows[1:]],
    }
    result.write_text(json.dumps(found))
    return found


def interval(values: list[float]) -> dict[str, float | None]:
    """The mean, and half the width of its 95 % interval by Student's t."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "half_width": None}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return {"mean": mean, "half_width": T95[len(values) - 1] * deviation / math.sqrt(len(values))}


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each stage, and of its differences to the teacher, seed by seed."""
    columns = list(zip(*(one["top1"] for one in seeds), strict=True))
    stages = ["teacher", *(f"cycle-{cycle}" for cycle in range(1, len(columns)))]
    gains = {stage: [ours - theirs for ours, theirs in zip(column, columns[0], strict=True)] for stage, column in zip(stages[1:], columns[1:], strict=True)}
    last = interval(gains[stages[-1]])
    return {
        "top1": {stage: interval(list(column)) for stage, column in zip(stages, columns, strict=True)},
        "gain": {stage: interval(values) | {"above": sum(value > 0 for value in values), "of": len(values)} for stage, values in gains.items()},
        "outcome": outcome(last),
    }


def outcome(gain: dict[str, float | None]) -> str:
    if gain["half_width"] is None or abs(gain["mean"]) <= gain["half_width"]:
        return "undecided: the interval of the last student's gain contains 0"
    return "the last student is above the teacher" if gain["mean"] > 0 else "the last student is below the teacher"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="at most ten")
    parser.add_argument(
        "--scale", choices=SCALES, default="short", help=", ".join(f"{name}: {epochs} epochs, {cycles} cycles" for name, (epochs, cycles) in SCALES.items())
    )
    parser.add_argument("--cycles", type=int, help="fewer than the scale has, of runs that may be there already")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "claims" / "noisy_student", help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "amd-epyc" / "claims" / "noisy_student.json")
    options = parser.parse_args()
    if not 1 <= len(set(options.seeds)) == len(options.seeds) <= 10:
        parser.error("--seeds must be one to ten different numbers")
    torch.set_num_threads(1)
    scale, seeds = SCALES[options.scale], []
    if options.cycles is not None:
        scale = scale._replace(cycles=min(max(options.cycles, 1), scale.cycles))
    for seed in options.seeds:
        seeds.append(measured(seed, scale, options.work / options.scale / f"seed-{seed}"))
        print(f"seed {seed}: " + " -> ".join(f"{value:.4f}" for value in seeds[-1]["top1"]), flush=True)
    about = {"vtkernels": vtkernels.__version__, "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    content = {"claim": "a noisy student is above its teacher", "scale": {"name": options.scale, **scale._asdict()}, **summary(seeds), "seeds": seeds, **about}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    for stage, gain in content["gain"].items():
        width = "" if gain["half_width"] is None else f" +- {gain['half_width']:.4f}"
        print(f"{stage}: {gain['mean']:+.4f}{width} over the teacher, above it in {gain['above']} of {gain['of']}")
    print(f"{content['outcome']}; {options.out}")


if __name__ == "__main__":
    main()
