"""What `make demo` runs: a small Swin with DRLOC and SAM, trained on scikit-learn's digits.

It measures the speed of an update with the kernels against the same update in plain torch, trains with progress on the terminal, and leaves
a report of the run. Everything it uses is the library's own: the recipe is `vtkernels train demo`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from vtkernels.recipes import Recipe, build, get_recipe
from vtkernels.train.observers import usual_observers
from vtkernels.train.precision import Precision
from vtkernels.train.update import Update

BAR = 0.96
# updates of one way, then of the other: what else the machine does meets both
ROUNDS, UPDATES = 7, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="of the run; an earlier demo in it is overwritten")
    parser.add_argument("--epochs", type=int, help="fewer, for a shorter look")
    options = parser.parse_args()
    recipe = get_recipe("demo")
    if options.epochs:
        recipe = replace(recipe, train=replace(recipe.train, epochs=options.epochs), schedule=replace(recipe.schedule, warmup=0))
    ours, plain = seconds_of_updates(recipe)
    print(f"one update of SAM with DRLOC: {1e3 * ours:.0f} ms with the kernels, {1e3 * plain:.0f} ms in plain torch: {plain / ours:.2f} times as fast\n")
    forget(options.folder)
    trainer = build(recipe, folder=options.folder, observers=usual_observers(options.folder))
    started = time.perf_counter()
    history = trainer.fit()
    # the last epoch's, not the best one's: nothing was chosen by these images
    reached = history.epochs[-1].ema["top1"]
    bar = "" if options.epochs else f"; above {BAR:.0%} was to be reached"
    print(f"\n{reached:.2%} of the held-out digits after {time.perf_counter() - started:.0f} s{bar}")
    page = (options.folder / "report.html").resolve()
    print(f"curves, confusion matrix, worst examples and maps: {page}" if page.exists() else f"{page} could not be written; see the messages above")
    print(f"evaluate it: vtkernels eval {options.folder} --corruptions generated")
    return 0 if page.exists() and (reached > BAR or options.epochs) else 1


def seconds_of_updates(recipe: Recipe) -> tuple[float, float]:
    """Medians, with the kernels and in plain torch, by turns on the same batch."""
    trainer = build(recipe)
    batch = next(iter(trainer.train_loader))
    trainer.module.train()
    update = Update(trainer.module, trainer.optimizer, Precision("float32", trainer.device), recipe.train)
    measured: dict[str, list[float]] = {"auto": [], "reference": []}
    for number in range(ROUNDS + 1):
        for backend, times in measured.items():
            with backend_of_all_ops(backend):
                elapsed = seconds_of(update, batch)
            # in the first round memory is allocated and backends are chosen
            if number:
                times.append(elapsed / UPDATES)
    return statistics.median(measured["auto"]), statistics.median(measured["reference"])


def seconds_of(update: Update, batch) -> float:
    # a GPU has only been told what to do when an update returns
    wait = torch.cuda.synchronize if batch[0].is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(UPDATES):
        update([batch], epoch=10.0)
    wait()
    return time.perf_counter() - started


@contextmanager
def backend_of_all_ops(name: str) -> Iterator[None]:
    before = os.environ.get("VTKERNELS_BACKEND")
    os.environ["VTKERNELS_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("VTKERNELS_BACKEND")
        if before is not None:
            os.environ["VTKERNELS_BACKEND"] = before


def forget(folder: Path) -> None:
    """What an earlier demo left, so that nothing of it is taken for this one's."""
    for name in ("last.pt", "previous.pt", "best.pt", "report.html"):
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
