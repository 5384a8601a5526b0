"""What the trainer costs: its epochs against a bare loop with the same loader, model and optimizer, interleaved.

    python benchmarks/trainer.py --quick            the smallest models, three rounds
    python benchmarks/trainer.py                    models whose updates take 10 ms to 1 s on a CPU; goal: at most 2 % more

A linear layer comes first, of which an update is almost nothing but what surrounds it: there the microseconds count, not the share.

Both sides begin with the same weights and must have had the same losses, to the bit, before anything is timed. The trainer has an observer and
its usual record of each twentieth update. Nothing is saved or evaluated, which both sides would have to do.

Page faults are counted beside the time: glibc gives the top of its heap back to the system when a backward has freed it, or not, as the blocks
happen to lie. That falls on either side, differs from epoch to epoch, and is worth some percent of an update; --tuned-malloc keeps the heap.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import command
import report
import timing
import torch
from attn_problem import Wrong
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import vtkernels as vt
from vtkernels.optim.schedules import Cosine, set_lr
from vtkernels.train import ClassificationTask, Observer, Settings, Trainer

BARE, OURS = "bare loop", "trainer"
GOAL = 0.02
CLIP = 1.0


@dataclass(frozen=True)
class Case:
    model: str
    size: int
    batch: int
    updates: int


# almost nothing but what surrounds it
LINEAR = "linear layer"
CASES = [
    Case(LINEAR, 32, 8, 20),
    Case("vit_nano_patch4_32", 32, 8, 20),
    Case("swin_nano_patch4_window4_32", 32, 16, 20),
    Case("vit_tiny_patch16_224", 224, 4, 4),
]
OPTIMIZERS = ("adamw", "sam")


class Losses(Observer):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, record) -> None:
        self.found.append(record.loss)


class Bench:
    """Both sides of a row, each with a model, an optimizer and a loader of its own."""

    def __init__(self, case: Case, optimizer: str, device: str):
        self.case, self.device = case, torch.device(device)
        count = case.batch * case.updates
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, 3, case.size, case.size, generator=generator)
        self.data = TensorDataset(images, torch.randint(0, 10, (count,), generator=generator))
        self.optimizer = optimizer
        self.schedule = Cosine(lr=1e-3, length=10**6)

    def loader(self) -> "vt.data.Loader":
        return vt.data.create_loader(self.data, self.case.batch, train=True, device=self.device)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        if self.case.model == LINEAR:
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * self.case.size**2, 10)).to(self.device)
        return vt.create_model(self.case.model, num_classes=10).to(self.device)

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "sam":
            return vt.optim.SAM(module.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-3, model=module)
        return vt.optim.create_optimizer("adamw", module.parameters(), lr=1e-3)

    def bare(self, log_every: int) -> tuple[Callable[[], None], list[float]]:
        model, losses = self.model(), []
        optimizer, loader, update = self.make_optimizer(model), self.loader(), 0

        def step(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            if self.optimizer == "sam":
                with optimizer.perturbed():
                    F.cross_entropy(model(images), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            # without the graph, which would live on into the next forward
            return loss.detach()

        def epoch() -> None:
            nonlocal update
            model.train()
            for images, targets in loader:
                set_lr(optimizer, self.schedule(update))
                loss = step(images, targets)
                update += 1
                if update == 1 or update % log_every == 0:
                    losses.append(loss.item())

        return epoch, losses

    def ours(self, log_every: int) -> tuple[Callable[[], None], list[float]]:
        seen = Losses()
        settings = Settings(epochs=10**6, clip_norm=CLIP, log_every=log_every)
        task = ClassificationTask(self.model())
        trainer = Trainer(task, self.make_optimizer, self.schedule, self.loader(), None, settings, observers=[seen], device=self.device)
        return trainer.run_epoch, seen.found

    def gate(self) -> None:
        """The same losses, to the bit."""
        curves = []
        for make in (self.bare, self.ours):
            epoch, losses = make(1)
            epoch()
            curves.append(losses)
        if curves[0] != curves[1]:
            raise Wrong(f"{self.case.model}: the trainer's losses are not those of the bare loop: {curves[1][:3]}, {curves[0][:3]}")

    def sides(self) -> list[timing.Side]:
        return [timing.Side(name, make(20)[0]) for name, make in ((BARE, self.bare), (OURS, self.ours))]


def main() -> None:
    parser = command.parser(__doc__, [], "three rounds of the first two models only", dtypes=("float32",))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--only", default="", help="only models whose name contains this")
    options = command.parse(parser, [])
    command.settle(options)
    started = time.perf_counter()
    result = command.facts("trainer", options)
    command.announce("the trainer against a bare loop", result)
    for case in [case for case in (CASES[:2] if options.quick else CASES) if options.only in case.model]:
        for optimizer in options.optimizers:
            result["rows"].append(measure(case, optimizer, options))
            print(line(result["rows"][-1]), flush=True)
    result["seconds"] = round(time.perf_counter() - started, 1)
    name = command.file_name(options, "trainer", options.dtype, quick=options.quick, tuned=options.tuned_malloc)
    path = report.save(result, options.out, name, options.device)
    over = [row["overhead"] for row in result["rows"] if row["name"] != LINEAR]
    if over:
        print(f"\nan update of a model takes {statistics.median(over):.2%} longer (median), {max(over):.2%} at most; the goal is {GOAL:.0%}")
    command.tell_disturbed(result["rows"])
    print(f"{result['seconds']:.0f} s; results in {report.shown(path)}")


def measure(case: Case, optimizer: str, options: argparse.Namespace) -> dict:
    bench = Bench(case, optimizer, options.device)
    bench.gate()
    row = {"name": case.model, "optimizer": optimizer, "batch": case.batch, "updates": case.updates}
    sides = bench.sides()
    times = command.sampled(sides, options, row)
    row["ms"] = {name: value / case.updates for name, value in row["ms"].items()}
    row["overhead"] = times.ratio(OURS, BARE) - 1
    row["faults_per_update"] = {side.name: round(faults(side.run) / case.updates) for side in sides}
    row["us_per_update"] = statistics.median((one[OURS] - one[BARE]) * 1e6 / case.updates for one in times.rounds)
    return row


def faults(epoch: Callable[[], None], epochs: int = 3) -> int:
    """Pages that the system had to give to an epoch, the median of some."""
    found = []
    for _ in range(epochs):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        epoch()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(found)


def line(row: dict) -> str:
    bare = row["ms"][BARE]
    pages = " and ".join(str(row["faults_per_update"][name]) for name in (BARE, OURS))
    return f"{row['name']:30} {row['optimizer']:6} {bare:9.3f} ms an update, {row['overhead']:+7.2%}, {row['us_per_update']:+7.0f} us, {pages} page faults"


if __name__ == "__main__":
    main()
