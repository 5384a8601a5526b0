"""AugMix, triplets for its loss, and RandAugment, images a second against the other ways to make them.

    python benchmarks/augmix.py --quick        three rounds
    python benchmarks/augmix.py                224 x 224 and 32 x 32, every peer, one core

AugMix has three chains of one to three of nine operations at severity 3, and ends as a normalised float32 image; RandAugment is
`rand-m9-mstd0.5-inc1`. A side is given a Pillow image, unless its name ends in `_array`: then the image is a numpy array already. Each side
draws its own random numbers; a call makes as many copies as average over operations that cost very different times.
"""

import argparse
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
import timing
import torch
from attn_problem import Wrong
from command import RESULTS, ratio
from peers.augmix import MEAN, PEERS, RAND_CONFIG, SEVERITY, STD, WIDTH
from peers.window_attention import Unavailable
from PIL import Image

from vtkernels.data import augment
from vtkernels.data.augment.native import imgops

OURS, OURS_ARRAY = "vtkernels", "vtkernels_array"
# task, side of the image, copies in a call
ROWS = (("augmix", 224, 24), ("augmix", 32, 200), ("triplet", 224, 12), ("triplet", 32, 100), ("randaugment", 224, 60), ("randaugment", 32, 400))


def photo(side: int) -> Image.Image:
    """Smooth shapes and some noise, as photographs have."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noise = rng.integers(-8, 9, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def ours(task: str, image: Image.Image | np.ndarray) -> Callable[[], object]:
    seeds = iter(range(1 << 62))
    if task == "randaugment":
        rand = augment.RandAugment.from_config(RAND_CONFIG)
        return lambda: rand(image, next(seeds))
    augmix = augment.AugMix(width=WIDTH, severity=SEVERITY, mean=MEAN, std=STD)
    shape = np.asarray(image).shape
    if task == "triplet":
        triplet = np.empty((3, 3, *shape[:2]), np.float32)
        return lambda: augmix.views(image, next(seeds), out=triplet)
    out = np.empty((3, *shape[:2]), np.float32)
    return lambda: augmix(image, next(seeds), out)


def check(image: Image.Image) -> None:
    """The one thing all sides share and nobody draws: the clean image, normalised."""
    view = augment.AugMix(mean=MEAN, std=STD).views(image, 0)[0]
    exact = (np.asarray(image, np.float64).transpose(2, 0, 1) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    if not np.abs(view - exact).max() <= 1e-6:
        raise Wrong(f"the clean view is off by {np.abs(view - exact).max():.1e}")


def repeated(run: Callable[[], object], copies: int) -> Callable[[], None]:
    def all_copies() -> None:
        for _ in range(copies):
            run()

    return all_copies


def measure_row(task: str, side: int, copies: int, plan: timing.Plan) -> dict:
    image = photo(side)
    check(image)
    row = {"task": task, "side": side, "refused": {}}
    runs = {OURS: ours(task, image), OURS_ARRAY: ours(task, np.asarray(image).copy())}
    for name, make in PEERS[task].items():
        try:
            runs[name] = make(image)
            runs[name]()
        except Unavailable as error:
            row["refused"][name] = str(error)[:300]
            runs.pop(name, None)
    times = timing.measure([timing.Side(name, repeated(run, copies)) for name, run in runs.items()], plan)
    row["images_per_s"] = {name: copies / times.seconds(name) for name in runs}
    row["spread"] = {name: times.spread(name) for name in runs}
    row["over"] = {name: times.ratio(name, OURS) for name in runs if name in PEERS[task]}
    return row | {"rounds": len(times.rounds), "dropped": times.dropped, "disturbed": times.disturbed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--tasks", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--sides", nargs="+", type=int, choices=(32, 224), default=[224, 32])
    parser.add_argument("--rounds", type=int, help="timed rounds (default 9, quick 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default benchmarks/results)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    plan = timing.QUICK if options.quick else timing.Plan()
    plan = timing.Plan(**vars(plan) | {"rounds": options.rounds or plan.rounds})
    started = time.perf_counter()
    environment = report.environment("cpu")
    environment["imgops"] = imgops().isa()
    packages = [package for package in ("pillow", "torchvision", "timm") if importlib.util.find_spec("PIL" if package == "pillow" else package)]
    environment["versions"] |= {package: importlib.metadata.version(package) for package in packages}
    result = {"benchmark": "augmix", "device": "cpu", "environment": environment, "plan": vars(plan) | {"watching": timing.can_watch()}, "rows": []}
    print(f"augmentation on {environment['device']}, one thread; image operations: {environment['imgops']}", flush=True)
    for task, side, copies in ROWS:
        if task in options.tasks and side in options.sides:
            result["rows"].append(measure_row(task, side, max(1, copies // 4) if options.quick else copies, plan))
            print(f"{task} {side}: " + ", ".join(f"{ratio(v)} {name}" for name, v in result["rows"][-1]["over"].items()), file=sys.stderr, flush=True)
    result["seconds"] = round(time.perf_counter() - started, 1)
    path = report.save(result, options.out, "augmix_quick" if options.quick else "augmix", "cpu")
    show(result)
    print(f"\n{result['seconds']:.0f} s; results in {report.shown(path)}")


def show(result: dict) -> None:
    table = []
    for row in result["rows"]:
        speed, others = row["images_per_s"], ", ".join(f"{value:.1f} {name}" for name, value in row["images_per_s"].items() if name in row["over"])
        over = ", ".join(f"{ratio(value)} {name}" for name, value in row["over"].items())
        table.append([f"{row['task']} {row['side']}", f"{speed[OURS]:.1f}", f"{row['spread'][OURS]:.1%}", f"{speed[OURS_ARRAY]:.1f}", others, over])
    report.print_table("images a second (of a triplet: triplets)", ["", "vtkernels", "spread", "of arrays", "others", "over"], table)
    dropped, disturbed = (sum(row[key] for row in result["rows"]) for key in ("dropped", "disturbed"))
    print(f"disturbed rounds: {dropped} dropped and repeated, {disturbed} kept for want of quiet ones")
    for row in result["rows"]:
        for name, reason in row["refused"].items():
            print(f"not timed: {name} ({row['task']} {row['side']}): {reason}")


if __name__ == "__main__":
    main()
