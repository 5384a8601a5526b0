"""Whole models on a GPU: images a second and memory, in training and inference, of ours, of timm's, and of timm's with our attention.

python benchmarks/gpu_models.py                                        writes benchmarks/results/<device>/gpu_models.json
python benchmarks/gpu_models.py --models vit_small_patch16_224 --minutes 5
python benchmarks/gpu_models.py --dry                                  a tiny model on a CPU: tries the script, its times mean nothing

All sides of a model start from timm's random weights, and are held to its logits before they are timed; without timm, ours from its
own weights, held to its own in fp32 by the reference backends. Training is one step
under bfloat16 autocast: forward, cross-entropy, backward, fused AdamW; "SAM" is the same with two passes. Inference is the model in bfloat16.
Rounds take every side in turns, on batches that rotate; compiled sides come last, as they take the time.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gpu_plots
import peaks
import torch
from attn_sides import OURS
from gpu_run import Clock, Run, add_resume, free, told
from peers.window_attention import Unavailable
from timing import Side
from torch import Tensor, nn

import vtkernels as vt

HERE = Path(__file__).parent
MODELS = ("swin_tiny_patch4_window7_224", "vit_small_patch16_224", "swin_base_patch4_window7_224", "cait_s24_224")
MODES = ("inference", "training")
COMPILED = " compiled"
SAM = f"{OURS} SAM"
# of Swin-T against ViT-S, same dtype and compile mode
GOALS = {"inference": 0.7, "training": 0.65}
BATCHES_IN_TURN = 4
# milliseconds a sample need not exceed
SAMPLE = 600.0
# seconds that all sides of a model may take, compiled or not
PATIENCE = 420.0
# what rounding may make of logits: this often what it makes of timm's own
TOLERANCE = 3.0


@dataclass
class Plan:
    batch: int = 128
    rounds: int = 5
    # calls in a sample, at most
    calls: int = 10
    compiled: bool = True
    image: int | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names that timm knows")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled sides, which take most of the time")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--dry", action="store_true", help="a tiny model on a CPU, one round")
    parser.add_argument("--out", type=Path, help="folder of the result (default benchmarks/results, dry benchmarks/out)")
    add_resume(parser)
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("gpu_models: expected a CUDA device, this torch sees none; --dry tries the script without one", file=sys.stderr)
        return 2
    folder = options.out or HERE / ("out" if options.dry else "results")
    run = Run("gpu_models", "cpu" if options.dry else "cuda", options.minutes, folder, options.dry, options.resume)
    if options.dry:
        return measure(run, ["vit_tiny_patch16_224"], options.modes, Plan(batch=1, rounds=1, calls=1, compiled=False, image=64))
    return measure(run, options.models, options.modes, Plan(options.batch, options.rounds, compiled=not options.no_compile))


def measure(run: Run, models: list[str], modes: list[str], plan: Plan) -> int:
    limits = run.attempt("the machine's limits", lambda: peaks.measure(run.device), again=True)
    run.result |= {"limits": limits and limits.as_json(), "plan": vars(plan)}
    run.result.setdefault("rows", [])
    for compiled in (False, True)[: 1 + plan.compiled]:
        for mode in modes:
            for name in models:
                work = partial(_row, run, name, mode, compiled, plan)
                row = run.attempt(f"{mode} of {name}{COMPILED * compiled}", work, 60 if compiled else 30, patience=PATIENCE)
                if row is not None:
                    run.result["rows"].append(row)
                    run.result["goals"] = goals(run.result["rows"])
                    run.save()
                    print(_line(row), flush=True)
                torch.compiler.reset()
                free(run.device)
    for goal in run.result.get("goals", ()):
        print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['what']}: {goal['found']:.2f}, at least {goal['least']:g}")
    run.attempt("the plot", lambda: gpu_plots.draw(run.save()))
    return run.finish()


def _row(run: Run, name: str, mode: str, compiled: bool, plan: Plan) -> dict[str, Any]:
    bench = Bench(name, mode, run.device, plan)
    row: dict[str, Any] = {"model": name, "mode": mode, "compiled": compiled, "batch": plan.batch, "errors": {}, "refused": {}, "peak_GB": {}}
    sides = []
    for side, build in bench.builds().items():
        if compiled and side == SAM:
            continue
        label = side + COMPILED * compiled
        try:
            candidate, row["errors"][label], memory = bench.admit(build, compiled, sam=side == SAM)
        except Exception as error:  # a model that does not exist yet, or does not fit, is one side less
            row["refused"][label] = told(error)
            print(f"not timed: {label} in {mode} of {name}: {row['refused'][label]}", flush=True)
            free(run.device)
            continue
        sides.append(Side(label, candidate))
        if memory is not None:
            row["peak_GB"][label] = memory / 1e9
    times, failed = _times(sides, plan, run.device, run.clock)
    row["refused"] |= failed
    row["ms"] = {label: statistics.median(found) for label, found in times.items()}
    row["images_per_second"] = {label: 1e3 * plan.batch / milliseconds for label, milliseconds in row["ms"].items()}
    return row


def _timm_model(name: str, options: dict[str, Any]) -> tuple[nn.Module | None, str]:
    """timm's model, or why there is none."""
    try:
        import timm

        return timm.create_model(name, **options), ""
    except Exception as error:  # a broken installation raises whatever it likes
        return None, f"timm has no such model here: {told(error)}"


class Bench:
    """One model in one mode: weights and logits that all sides share, batches, and the gate."""

    def __init__(self, name: str, mode: str, device: str, plan: Plan):
        self.name, self.mode, self.device, self.plan = name, mode, device, plan
        torch.manual_seed(0)
        self.options = {} if plan.image is None else {"img_size": plan.image}
        self.timm, self.no_timm = _timm_model(name, self.options)
        self.source = self.timm or vt.create_model(name, **self.options)
        self.source.eval()
        generator = torch.Generator().manual_seed(0)
        edge = plan.image or 224
        shape = (plan.batch, 3, edge, edge)
        self.batches = [torch.randn(shape, generator=generator).to(device) for _ in range(BATCHES_IN_TURN)]
        self.labels = torch.randint(1000, (plan.batch,), generator=generator).to(device)
        with torch.no_grad(), mock.patch.dict(os.environ, {"VTKERNELS_BACKEND": "reference"}):
            self.truth = copy.deepcopy(self.source).to(device)(self.batches[0][:2])
            # what bfloat16 makes of the same
            rounded = self._logits(self._placed(copy.deepcopy(self.source)))
        self.allowed = TOLERANCE * (self._error(rounded) + torch.finfo(torch.bfloat16).eps)

    def builds(self) -> dict[str, Callable[[], nn.Module]]:
        sides = {"timm": self._timm, "timm + vt.accelerate": self._accelerated, OURS: self._ours}
        return sides | ({SAM: self._ours} if self.mode == "training" else {})

    def admit(self, build: Callable[[], nn.Module], compiled: bool, sam: bool) -> tuple[Callable[[], Any], float, int | None]:
        """A step to be timed, the logits' error, and the bytes the side takes at most; raises where the logits are wrong."""
        before = self._allocated(reset=True)
        model = self._placed(build())
        if compiled:
            model = torch.compile(model)
        with torch.no_grad():
            error = self._error(self._logits(model))
        # written so that a NaN is refused
        if not error <= self.allowed:
            raise ValueError(f"logits are off by {error:.1e} of the right ones, {self.allowed:.1e} allowed")
        step = self._training(model, sam) if self.mode == "training" else self._inference(model)
        step()
        return step, error, None if before is None else self._allocated(peak=True) - before

    def _ours(self) -> nn.Module:
        model = vt.create_model(self.name, **self.options)
        model.load_state_dict(type(model).convert_state(self.source.state_dict()))
        return model.eval()

    def _timm(self) -> nn.Module:
        if self.timm is None:
            raise Unavailable(self.no_timm)
        return copy.deepcopy(self.timm)

    def _accelerated(self) -> nn.Module:
        # what is worth replacing depends on the device
        return vt.accelerate(self._timm().to(self.device))

    def _placed(self, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        return model.bfloat16() if self.mode == "inference" else model

    def _logits(self, model: nn.Module) -> Tensor:
        model.eval()
        # the whole batch, as it will be timed: another size would make a compiled model one for any size
        return self._forward(model, self.batches[0])[:2]

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.mode == "inference":
            return model(images.bfloat16())
        with torch.autocast(self.device, torch.bfloat16):
            return model(images)

    def _error(self, logits: Tensor) -> float:
        return float((logits.double() - self.truth.double()).norm() / self.truth.double().norm())

    def _inference(self, model: nn.Module) -> Callable[[], None]:
        turn = iter(range(1 << 60))

        @torch.inference_mode()
        def step() -> None:
            self._forward(model, self.batches[next(turn) % BATCHES_IN_TURN])

        return step

    def _training(self, model: nn.Module, sam: bool) -> Callable[[], None]:
        model.train()
        turn = iter(range(1 << 60))
        if sam:
            optimizer = vt.optim.SAM(model.parameters(), torch.optim.AdamW, lr=1e-4, model=model)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def backward(images: Tensor) -> None:
            nn.functional.cross_entropy(self._forward(model, images).float(), self.labels).backward()

        def step() -> None:
            images = self.batches[next(turn) % BATCHES_IN_TURN]
            backward(images)
            if sam:
                with optimizer.perturbed():
                    backward(images)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _allocated(self, reset: bool = False, peak: bool = False) -> int | None:
        if self.device != "cuda":
            return None
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def _times(sides: list[Side], plan: Plan, device: str, clock: Clock) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds of a step of each side in each round, as a training loop sees them; and why a side has none. When the time is over, fewer rounds."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    failed: dict[str, str] = {}
    calls = dict.fromkeys(times, 1)
    for turn in range(-1, plan.rounds) if sides else ():
        if turn > 0 and not clock.allows(0.0):
            break
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            if side.name in failed:
                continue
            try:
                milliseconds = _sample(side, calls[side.name], device)
            except Exception as error:  # out of memory, most likely
                failed[side.name] = told(error)
                free(device)
                continue
            if turn < 0:
                calls[side.name] = max(1, min(plan.calls, int(SAMPLE / milliseconds)))
            else:
                times[side.name].append(milliseconds)
    return {name: found for name, found in times.items() if name not in failed}, failed


def _sample(side: Side, calls: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        side.run()
    wait()
    return 1e3 * (time.perf_counter() - start) / calls


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Swin-T's images a second over ViT-S's: what windows cost."""
    found = []
    for mode, least in GOALS.items():
        for compiled in (False, True):
            speeds = [
                next((row["images_per_second"].get(OURS + COMPILED * compiled) for row in rows if _is(row, name, mode, compiled)), None) for name in MODELS[:2]
            ]
            if all(speeds):
                over = speeds[0] / speeds[1]
                what = f"Swin-T over ViT-S, {mode}{COMPILED * compiled}"
                found.append({"what": what, "least": least, "found": over, "met": over >= least})
    return found


def _is(row: dict[str, Any], name: str, mode: str, compiled: bool) -> bool:
    return (row["model"], row["mode"], row["compiled"]) == (name, mode, compiled)


def _line(row: dict[str, Any]) -> str:
    speeds = ", ".join(f"{label} {speed:.0f}" for label, speed in row["images_per_second"].items())
    return f"{row['model']}, {row['mode']}: images a second: {speeds or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
