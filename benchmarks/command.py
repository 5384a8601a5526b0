"""The command line that the CPU's benchmarks share: flags, how long to measure, and what becomes of a result."""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plots
import report
import timing
import torch

from vtkernels._core.env import ISA_NAMES

RESULTS, SCRATCH = report.HERE / "results", report.HERE / "out"
DTYPES = ("float32", "bfloat16", "float16")


def parser(doc: str, peers: Iterable[str], quick: str, *, dtypes: tuple[str, ...] = DTYPES, device: bool = True, isa: bool = False) -> argparse.ArgumentParser:
    """A parser with the flags all benchmarks have; `quick` says what --quick does."""
    names = list(peers)
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--quick", action="store_true", help=quick)
    found.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    found.add_argument("--peers", nargs="*", choices=(*names, "all", "none"), metavar="PEER", help=f"any of {', '.join(names)}; default all")
    found.add_argument("--threads", type=int, default=torch.get_num_threads())
    if device:
        found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        found.add_argument("--backend", default="auto", help="of vtkernels (default auto)")
    if isa:
        found.add_argument("--isa", choices=ISA_NAMES, help="highest instruction set of the native kernels; the peers keep theirs")
    found.add_argument("--rounds", type=int, help="timed rounds (default 9, quick 3)")
    found.add_argument("--tuned-malloc", action="store_true", help="keep glibc from mapping and unmapping large tensors, for all sides")
    found.add_argument("--out", type=Path, help="folder of the results (default benchmarks/results)")
    found.set_defaults(all_peers=names)
    return found


def add_medium(found: argparse.ArgumentParser, whose: str = "each peer") -> None:
    found.add_argument("--medium", action="store_true", help=f"{whose} also under set_float32_matmul_precision('medium')")


def parse(found: argparse.ArgumentParser, quick_peers: list[str]) -> argparse.Namespace:
    """The flags, checked, with the peers that are meant; demos are quick."""
    options = found.parse_args()
    options.quick |= getattr(options, "demo", False)
    options.device = getattr(options, "device", "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        found.error("--device cuda: this torch sees no CUDA device")
    if getattr(options, "medium", False) and options.dtype != "float32":
        found.error("--medium changes float32 products only; leave it out or use --dtype float32")
    if options.peers is None:
        options.peers = quick_peers if options.quick else options.all_peers
    elif "all" in options.peers or "none" in options.peers:
        options.peers = options.all_peers if "all" in options.peers else []
    options.out = options.out or (SCRATCH if getattr(options, "demo", False) else RESULTS)
    return options


def settle(options: argparse.Namespace) -> None:
    """Allocator, instruction set and threads, before anything is measured."""
    if options.tuned_malloc:
        report.restart_with(report.TUNED_MALLOC)
    if getattr(options, "isa", None):
        os.environ["VTKERNELS_ISA"] = options.isa
    torch.set_num_threads(options.threads)


def plan(options: argparse.Namespace) -> timing.Plan:
    usual = timing.QUICK if options.quick else timing.Plan()
    return timing.Plan(**vars(usual) | {"rounds": options.rounds or usual.rounds})


def facts(benchmark: str, options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """How a result begins; rows follow."""
    result = {"benchmark": benchmark, "device": options.device, "dtype": options.dtype, "environment": report.environment(options.device)}
    return result | {"plan": vars(plan(options)) | {"watching": timing.can_watch()}, "peers": options.peers, **more, "rows": []}


def announce(title: str, result: dict[str, Any], *lines: str) -> None:
    environment = result["environment"]
    where = f"{environment['device']}, {threads(result)}" if result["device"] == "cpu" else environment["device"]
    print(f"{title}, {result['dtype']}, on {where}; torch {environment['versions']['torch']}, native kernels: {environment['isa']}")
    print(*lines, sep="\n", end="\n" if lines else "")
    watching = "are repeated" if result["plan"]["watching"] else "cannot be detected here"
    print(f"allocator: {environment['allocator']}; disturbed rounds {watching}", flush=True)


def peaks_line(result: dict[str, Any]) -> str:
    peaks = result["peaks"]
    return f"peaks here and now: {peaks['GFLOPs'][result['dtype']]:.0f} GFLOP/s ({peaks['how']}), copy {peaks['copy_GBps']:.0f} GB/s"


def file_name(options: argparse.Namespace, *parts: str | None, **flags: bool) -> str:
    """What was asked for, as a name: the parts, the threads; instruction set, backend and shapes where they were chosen; the flags."""
    threads = f"{options.threads}t" if options.device == "cpu" else None
    chosen = [getattr(options, "isa", None), getattr(options, "backend", "auto"), getattr(options, "only", "").replace("/", "-").strip("-")]
    return "_".join(filter(None, [*parts, threads, *(one for one in chosen if one != "auto"), *(name for name, given in flags.items() if given)]))


def keep(result: dict[str, Any], options: argparse.Namespace, name: str, started: float, show: Callable[[dict], None] | None) -> tuple[Path, Path | None]:
    """Save a result, show and draw it; where it and its picture are."""
    result["seconds"] = round(time.perf_counter() - started, 1)
    path = report.save(result, options.out, name, options.device)
    if show:
        show(result)
    plot = plots.draw(path)
    if show:
        print(f"\n{result['seconds']:.0f} s; results in {report.shown(path)}" + (f", plot in {report.shown(plot)}" if plot else ""))
    return path, plot


def sampled(sides: list[timing.Side], options: argparse.Namespace, row: dict[str, Any], unit: str = "ms") -> timing.Timings:
    """Time the sides, and put into the row what every benchmark tells of that."""
    times = timing.measure(sides, plan(options), torch.cuda.synchronize if options.device == "cuda" else lambda: None)
    scale = {"ms": 1e3, "us": 1e6}[unit]
    row[unit] = {side.name: times.seconds(side.name) * scale for side in sides}
    row["spread"] = {side.name: times.spread(side.name) for side in sides}
    row |= {"rounds": len(times.rounds), "dropped": times.dropped, "disturbed": times.disturbed}
    return times


def versus(times: timing.Timings, peers: list[str], ours: str) -> dict[str, Any] | None:
    """The fastest of the peers, and how many times longer it takes."""
    best = times.fastest(peers)
    return best and {"name": best, "ratio": times.ratio(best, ours)}


def threads(result: dict[str, Any]) -> str:
    count = result["environment"]["threads"]
    return f"{count} thread" + "s" * (count != 1)


def ratio(value: float | None) -> str:
    return f"{value:.2f}x" if value else "-"


def best(found: dict[str, Any] | None) -> str:
    return f"{found['ratio']:.2f}x {found['name']}" if found else "-"


def every_side(rows: list[dict[str, Any]], title: Callable[[dict], list[str]], columns: list[str], unit: str = "ms") -> None:
    """All times of all sides, as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row[unit]))
    digits = {"ms": 3, "us": 1}[unit]
    table = [[*title(row), *(f"{row[unit][name]:.{digits}f}" if name in row[unit] else "-" for name in names)] for row in rows]
    report.print_table(f"every side, {unit}", [*columns, *names], table)


def tell_disturbed(rows: list[dict[str, Any]]) -> None:
    dropped, disturbed = (sum(row.get(key, 0) for row in rows) for key in ("dropped", "disturbed"))
    print(f"disturbed rounds: {dropped} dropped and repeated, {disturbed} kept for want of quiet ones")


def tell_refused(rows: list[dict[str, Any]], where: Callable[[dict], str]) -> None:
    """Sides that were not timed, each reason once, with the rows it holds for."""
    refused: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["refused"].items():
            refused.setdefault((name, reason), []).append(where(row))
    for (name, reason), places in refused.items():
        print(f"not timed: {name}" + ("" if len(places) == len(rows) else f" ({', '.join(places)})") + f": {reason}")
