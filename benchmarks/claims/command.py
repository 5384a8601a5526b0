"""The command line of every claim."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.claims.claim import Claim, Setting
from benchmarks.claims.result import drawn, result_of, show
from benchmarks.claims.session import Session

HERE = Path(__file__).resolve().parents[1]


def main(claim_at: Callable[[Setting], Claim], arguments: list[str] | None = None, *, updates: int = Setting.updates) -> int:
    """`updates`: of each arm at tiny scale, unless the command line says otherwise."""
    options = parser(claim_at.__doc__ or "", updates).parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(scale=options.scale, data=options.data, path=options.path, corrupted=options.corrupted, updates=options.updates)
    try:
        claim = claim_at(setting)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if options.list:
        print("\n".join(arm.name for arm in claim.arms))
        return 0
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = f"{claim.name}_{options.scale}" + (f"_{options.data}" if options.data else "")
    session = Session(claim, options.work / name, checkpoints=options.scale == "full", device=device)
    print(f"{claim.title}\n{claim.says} ({claim.source})\n{len(claim.arms)} arms, {options.seeds} seeds", flush=True)
    results = session.run(range(options.seeds), options.only, options.minutes)
    if not any(results.values()):
        print("nothing was run")
        return 1
    result = result_of(claim, setting, results, session.seconds(), device.type)
    path = report.save(result, options.out, f"claims/{name}", device.type)
    picture = drawn(result, path.with_suffix(".png"))
    show(result)
    print(f"\n{report.shown(path)}" + (f", {report.shown(picture)}" if picture else ""))
    return 0


def parser(says: str, updates: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=says)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm (default 5)")
    parser.add_argument("--scale", choices=("tiny", "full"), default="tiny", help="tiny: smallest models on digits (default); full: the recipes as they are")
    parser.add_argument("--data", help="another data set than the recipes'")
    parser.add_argument("--path", type=Path, help="folder with the files of the data set, which nothing downloads")
    parser.add_argument("--corrupted", type=Path, help="folder with CIFAR-10-C or its like, for claims about corrupted images; else they are made")
    parser.add_argument("--updates", type=int, default=updates, help=f"of each arm at tiny scale, about (default {updates})")
    parser.add_argument("--only", default="", metavar="TEXT", help="train only arms with this in their names, such as on one of several GPUs")
    parser.add_argument("--minutes", type=float, help="begin no run after so many; the same command goes on later")
    parser.add_argument("--list", action="store_true", help="name the arms and leave")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)), help="of the CPU (default: all)")
    parser.add_argument("--work", type=Path, default=HERE / "out/claims", help="where finished runs are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where results and pictures go")
    return parser
