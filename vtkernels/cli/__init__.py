"""The command line: `vtkernels info | check | tune | list | train | eval | analyze | noisy-student | bench`."""

import argparse
import math
import os
import sys

import vtkernels
from vtkernels._core.op import OPS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vtkernels", description=vtkernels.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"vtkernels {vtkernels.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    some_op = {"nargs": "?", "choices": sorted(OPS), "metavar": "OP", "help": f"one of {', '.join(sorted(OPS))}; default: all"}
    info = commands.add_parser("info", help="versions, devices, the build, and which backend runs which op")
    info.set_defaults(run=lambda options, rest: _info())
    check = commands.add_parser("check", help="hold every backend that runs here to its op's contract")
    check.add_argument("op", **some_op)
    check.set_defaults(run=lambda options, rest: _check([options.op] if options.op else sorted(OPS)))
    tuner = commands.add_parser("tune", help="measure how the Triton kernels are best launched on this GPU, and keep it for later calls")
    tuner.add_argument("op", **some_op)
    tuner.add_argument("--minutes", type=float, default=math.inf, help="begin nothing new after so long; what was measured by then is kept")
    tuner.set_defaults(run=lambda options, rest: _tune([options.op] if options.op else sorted(OPS), options.minutes))
    listing = commands.add_parser("list", help="names of models, recipes, data sets or ops")
    listing.add_argument("what", choices=("models", "recipes", "datasets", "ops"))
    listing.add_argument("pattern", nargs="?", default="*", help='as for file names: "swin_*"')
    listing.set_defaults(run=lambda options, rest: _list(options.what, options.pattern))
    # these take options that are not known before the recipe or the analysis is
    train = commands.add_parser("train", help="train a recipe, or go on with a run", add_help=False)
    train.set_defaults(run=lambda options, rest: _train(rest))
    evaluate = commands.add_parser("eval", help="evaluate the weights of a run", add_help=False)
    evaluate.set_defaults(run=lambda options, rest: _evaluate(rest))
    analyze = commands.add_parser("analyze", help="look inside a trained model", add_help=False)
    analyze.set_defaults(run=lambda options, rest: _analyze(rest))
    student = commands.add_parser("noisy-student", help="train a teacher, and students of what it says of images without labels", add_help=False)
    student.set_defaults(run=lambda options, rest: _noisy_student(rest))
    bench = commands.add_parser("bench", help="measure all ops and some models beside their peers on this machine, and write a page of it", add_help=False)
    bench.set_defaults(run=lambda options, rest: _bench(rest))
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run not in [command.get_default("run") for command in (train, evaluate, analyze, student, bench)]:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        done = options.run(options, rest)
        sys.stdout.flush()
        return done
    except KeyboardInterrupt:
        print("\nvtkernels: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `vtkernels list models | head` has read enough; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _info() -> int:
    from vtkernels.cli.info import info

    return info()


def _check(ops: list[str]) -> int:
    from vtkernels.cli.check import check

    return check(ops)


def _tune(ops: list[str], minutes: float) -> int:
    from vtkernels.cli.tune import measure

    return measure(ops, minutes)


def _list(what: str, pattern: str) -> int:
    from vtkernels.cli.listing import show

    return show(what, pattern)


def _train(arguments: list[str]) -> int:
    from vtkernels.cli.train import train

    return train(arguments)


def _noisy_student(arguments: list[str]) -> int:
    from vtkernels.cli.noisy_student import noisy_student

    return noisy_student(arguments)


def _evaluate(arguments: list[str]) -> int:
    from vtkernels.cli.evaluate import evaluate

    return evaluate(arguments)


def _analyze(arguments: list[str]) -> int:
    from vtkernels.cli.analyze import analyze

    return analyze(arguments)


def _bench(arguments: list[str]) -> int:
    from vtkernels.cli.bench import bench

    return bench(arguments)


__all__ = ["main"]
