"""Which backend is best for a shape of yours, and why the others do not run it or are slower.

python -m vtkernels.profile window_attention --shape 8x56x56x288 bias_table=169x3 --set num_heads=3 window_size=7 shift_size=3
python -m vtkernels.profile augmix_loss --shape 384x1000 target=128 --dtype bfloat16 --threads 1
"""

import argparse
import ast
import inspect
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

import vtkernels  # noqa: F401 -- registers the ops
from vtkernels._core import testing
from vtkernels._core.explain import explain
from vtkernels._core.op import OPS, Op

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# a sample is as many calls as fill this; the clock and one interruption are small beside it
SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Line:
    """What one backend did: milliseconds and the largest share of the error budget, or why it did not run."""

    backend: str
    forward: float | None = None
    training: float | None = None
    error: float | None = None
    reason: str | None = None


class Unfit(ValueError):
    """A command line that describes no call, told in a sentence."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vtkernels.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", help=", ".join(name for name in OPS if testing.has_gradients(name)))
    parser.add_argument("--shape", nargs="+", default=[], metavar="[NAME=]AxBxC", help="tensors; the first needs no name")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="the op's other arguments, as in Python")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=_positive, default=7, help="each takes one sample of every backend")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        op = _op(options.op)
        inputs = _inputs(op, options.shape, options.set, DTYPES[options.dtype], _here(options.device))
        lines = profile(op.name, inputs, DTYPES[options.dtype], options.rounds)
    except (Unfit, ValueError, TypeError, RuntimeError) as error:
        print(f"vtkernels.profile: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nvtkernels.profile: interrupted", file=sys.stderr)
        return 130
    _show(op, lines, explain(op.name, **inputs).chosen("backward"), options)
    return 0


def profile(op: str, inputs: dict[str, Any], dtype: torch.dtype, rounds: int = 7) -> list[Line]:
    """Every backend on these arguments of the public function, fastest forward with backward first, those that cannot run last."""
    reasons = {name: testing.why_not(op, inputs, name) for name in OPS[op].backend_names}
    case = testing.Case("profile", "the shape that was asked for", lambda *_: inputs)
    shares = {
        name: max(verdict.share for verdict in testing.judge(op, name, case, dtype, _device(inputs))) for name, reason in reasons.items() if reason is None
    }
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name in shares:
        runs[name, "forward"], runs[name, "training"] = _forward(op, inputs, name), _training(op, inputs, name)
    seconds = _interleaved(runs, rounds, _device(inputs))
    lines = [Line(name, 1e3 * seconds[name, "forward"], 1e3 * seconds[name, "training"], share) for name, share in shares.items()]
    lines.sort(key=lambda line: line.training)
    return lines + [Line(name, reason=reason) for name, reason in reasons.items() if reason is not None]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _here(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Unfit(f"--device must be cpu or cuda, perhaps with a number, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Unfit(f"--device must be one that is here, got {name}, and this torch sees no CUDA device; try --device cpu")
    return device


def _op(name: str) -> Op:
    differentiable = [known for known in OPS if testing.has_gradients(known)]
    if name in differentiable:
        return OPS[name]
    if name in OPS:
        raise Unfit(f"op must have gradients, {name} works in place on lists of tensors; benchmarks/sam.py measures those")
    near = get_close_matches(name, differentiable, 1)
    raise Unfit(f"op must be one of {', '.join(differentiable)}, got {name!r}" + (f"; did you mean {near[0]}?" if near else ""))


def _inputs(op: Op, shapes: list[str], settings: list[str], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    parameters = {name: one for name, one in inspect.signature(op.public).parameters.items() if name != "backend"}
    example = op.example(torch.device("cpu"))
    tensors = [name for name, one in parameters.items() if "Tensor" in str(one.annotation)]
    inputs: dict[str, Any] = {}
    for position, given in enumerate(shapes):
        name, _, sizes = given.rpartition("=")
        name = name or (tensors[0] if position == 0 else "")
        if name not in tensors:
            raise Unfit(f"--shape names must be of {', '.join(tensors)}, got {given!r}; only the first may go without a name")
        inputs[name] = _drawn(name, _sizes(given, sizes), example.get(name), inputs, dtype, device)
    for given in settings:
        name, _, value = given.partition("=")
        if name not in parameters or name in tensors:
            near = get_close_matches(name, parameters, 1)
            raise Unfit(f"--set has no argument {name!r} in {op.name}; " + (f"did you mean {near[0]}?" if near else f"it has {', '.join(parameters)}"))
        inputs[name] = _value(value)
    missing = [name for name, one in parameters.items() if one.default is one.empty and name not in inputs]
    for name in [name for name in missing if name in tensors and "None" in str(parameters[name].annotation)]:
        inputs[name] = None
        missing.remove(name)
    if missing:
        told = ", ".join(f"{name}={'x'.join(map(str, example[name].shape)) if name in tensors else example[name]}" for name in missing)
        raise Unfit(f"{op.name} needs {', '.join(missing)}{' too' * bool(inputs)}, for instance {told}; tensors go to --shape, the rest to --set")
    return inputs


def _sizes(given: str, sizes: str) -> list[int]:
    try:
        return [int(size) for size in sizes.split("x")]
    except ValueError:
        raise Unfit(f"--shape must be sizes with x between them, such as 8x56x56x288, got {given!r}") from None


def _drawn(name: str, sizes: list[int], like: Tensor | None, inputs: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = testing.generator_for(name)
    if like is not None and not like.is_floating_point():
        # classes: the logits, which come before, have one column for each
        classes = next(iter(inputs.values())).shape[-1]
        return torch.randint(classes, sizes, generator=generator).to(device)
    return torch.randn(sizes, generator=generator, dtype=torch.float64).to(device, dtype)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _device(inputs: dict[str, Any]) -> torch.device:
    return next(value.device for value in inputs.values() if isinstance(value, Tensor))


def _forward(op: str, inputs: dict[str, Any], backend: str) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            OPS[op].public(**inputs, backend=backend)

    return run


def _training(op: str, inputs: dict[str, Any], backend: str) -> Callable[[], Any]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in testing.differentiable(inputs).items()}

    def run() -> None:
        outputs = testing.outputs_of(OPS[op].public(**{**inputs, **leaves}, backend=backend))
        smooth = tuple(output for output in outputs.values() if output.requires_grad)
        torch.autograd.grad(smooth, list(leaves.values()), tuple(torch.ones_like(output) for output in smooth))

    return run


def _interleaved(runs: dict[Any, Callable[[], Any]], rounds: int, device: torch.device) -> dict[Any, float]:
    """Median seconds a call. One sample of each in a round, so that a drifting clock meets all of them alike."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def sample(run: Callable[[], Any], calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        return (time.perf_counter() - start) / calls

    for run in runs.values():
        sample(run, 1)
    calls = {key: max(1, round(SAMPLE_SECONDS / sample(run, 1))) for key, run in runs.items()}
    found: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            found[key].append(sample(run, calls[key]))
    return {key: statistics.median(times) for key, times in found.items()}


def _show(op: Op, lines: list[Line], auto: str, options: argparse.Namespace) -> None:
    where = (
        f"{options.threads} thread{'s' * (options.threads > 1)}" if torch.device(options.device).type == "cpu" else torch.cuda.get_device_name(options.device)
    )
    print(f"{op.name}, {options.dtype}, {options.device} ({where}), medians of {options.rounds} interleaved rounds")
    print(f"{'backend':12} {'forward':>11} {'with backward':>14} {'':>7}  error, of what the contract allows")
    ran = [line for line in lines if line.reason is None]
    for line in ran:
        slower = f"{line.training / ran[0].training:.2f}x"
        print(f"{line.backend:12} {line.forward:8.3f} ms {line.training:11.3f} ms {slower:>7}  {line.error:.0%}{' TOO LARGE' if line.error > 1 else ''}")
    for line in lines:
        if line.reason is not None:
            print(f"{line.backend:12} {line.reason}")
    if ran:
        best = ran[0].backend
        print(f"best here: {best}; backend='auto' would run {auto}" + (f", backend='{best}' asks for the faster one" if auto != best else ""))


if __name__ == "__main__":
    sys.exit(main())
