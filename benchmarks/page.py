"""All results of a machine on one page, with nothing to load from elsewhere: tables, plots, and the roofline."""

import base64
import itertools
import statistics
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import plots

from vtkernels._core.plots import BLUE, MARKERS, SERIES, VERMILION, figure

Result = dict[str, Any]

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .faster { color: #0072b2 } .slower { color: #d55e00 }"""
TIMES = {"ms": "ms", "us": "us", "images_per_s": "images/s"}
# sides that are no peers: ours, and what a benchmark measures beside
OURS = ("vtkernels", "trainer")
BESIDE = ("control", "kernel", "plain")
# timm's model on our ops: a column of its own, but nobody to be compared with
OURS_TOO = ("accelerated",)
WORDS = """Ratios say how many times as fast as a peer we are: blue above 1, red below. The limit is this machine's arithmetic or its memory,
whichever is nearer, measured in the same process. Errors are the largest of outputs and gradients against the reference in float64, relative;
behind the slash the smallest of a peer's."""


def write(results: dict[Path, Result], folder: Path, failed: dict[str, str]) -> Path:
    """page.html and its two pictures in the folder, of results by their files, beside which their plots are; `failed`: scripts with their last words."""
    parts = [f"<p class='slower'>{escape(name)} failed: {escape(words)}</p>" for name, words in failed.items()] + [f"<p>{escape(WORDS)}</p>"]
    if _overview(list(results.values()), folder / "overview.png"):
        parts += ["<h2>Beside the fastest peer of each row</h2>", _picture(folder / "overview.png")]
    if _roofline(list(results.values()), folder / "roofline.png"):
        parts += ["<h2>Against the machine's limits</h2>", _picture(folder / "roofline.png")]
    for path, result in results.items():
        parts += [f"<h2>{escape(_title(result))}</h2>", f"<p>{escape(f'{path.name}: {_where(result)}')}</p>", _table(result)]
        parts += [_picture(path.with_suffix(".png"))] if path.with_suffix(".png").exists() else []
    environment = next(iter(results.values()))["environment"]
    title = f"vtkernels on {environment['device']}"
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
    (path := folder / "page.html").write_text(page + "".join(parts) + "</html>")
    return path


def _title(result: Result) -> str:
    names, peers = {row.get("name") for row in result["rows"]}, {peer for row in result["rows"] for peer in _peers(row)}
    model = names.pop() if len(names) == 1 else None
    setting = "medium too" if any(peer.endswith("_med") for peer in peers) else "" if peers else "the kernel alone"
    return ", ".join(filter(None, (result["benchmark"].replace("_", " "), model, _kind(result), setting)))


def _where(result: Result) -> str:
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    disturbed = sum(row.get("disturbed", 0) for row in result["rows"])
    return f"{versions}, commit {environment.get('commit')}, rounds kept although disturbed: {disturbed}"


def _table(result: Result) -> str:
    """A row a measurement: our time, how many times as fast as each peer, share of the limit, memory, error against float64."""
    rows = [row for row in result["rows"] if _times(row)]
    peers = list(dict.fromkeys(name for row in rows for name in _peers(row)))
    more = {"share of the limit": _share, "memory, MB": _memory, "kept for the backward, MB": _saved, "largest error": _error}
    columns = {title: [tell(row) for row in rows] for title, tell in more.items()}
    columns = {title: told for title, told in columns.items() if any(told)}
    head = "".join(f"<th>{escape(one)}</th>" for one in ("", "ours", *(f"over {peer}" for peer in peers), *columns))
    lines = []
    for index, row in enumerate(rows):
        unit, times = _times(row)
        ours = _ours(row)
        cells = [_label(row), f"{ours:.3g} {TIMES[unit]}" if ours else "refused"]
        cells += [_coloured(_ratio(unit, ours, times.get(peer))) for peer in peers]
        cells += [told[index] for told in columns.values()]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _peers(row: dict[str, Any]) -> list[str]:
    return [name for name in (_times(row) or ("", {}))[1] if not name.startswith((*OURS, *BESIDE))]


def _ours(row: dict[str, Any]) -> float | None:
    return next((times[name] for _, times in [_times(row)] for name in OURS if name in times), None)


def _times(row: dict[str, Any]) -> tuple[str, dict[str, float]] | None:
    # of a training step both are there; milliseconds are what the others have too
    return next(((unit, row[unit]) for unit in TIMES if row.get(unit)), None)


def _label(row: dict[str, Any]) -> str:
    if "task" in row:
        return escape(f"{row['task']}, {row['side']} x {row['side']}")
    name = row.get("name") or f"{row['classes']} classes, batch {row['batch']}"
    of_row = row.get("phase") or row["optimizer"]
    return escape(f"{name}, {plots.TITLES.get(of_row, of_row)}")


def _ratio(unit: str, ours: float | None, theirs: float | None) -> float | None:
    if not ours or not theirs:
        return None
    return ours / theirs if unit == "images_per_s" else theirs / ours


def _coloured(ratio: float | None) -> str:
    return f"<span class='{'faster' if ratio >= 1 else 'slower'}'>{ratio:.2f}x</span>" if ratio else ""


def _share(row: dict[str, Any]) -> str:
    """Of whichever limit is nearer: arithmetic, or a copy's pace."""
    found = row.get("ours", row)
    shares = {"arithmetic": row.get("share_of_peak"), "memory": row.get("share_of_copy"), "the memory's own pace": found.get("share_of_control")}
    known = {name: share for name, share in shares.items() if share}
    return f"{max(known.values()):.0%} of {max(known, key=known.get)}" if known else ""


def _memory(row: dict[str, Any]) -> str:
    return _megabytes(row.get("peak_bytes"))


def _saved(row: dict[str, Any]) -> str:
    return _megabytes(row.get("saved_bytes"))


def _megabytes(sizes: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {size / 1e6:.0f}" for name, size in (sizes or {}).items())


def _error(row: dict[str, Any]) -> str:
    largest = {name: max(errors.values()) for name, errors in row.get("errors", {}).items() if errors}
    theirs = [largest[peer] for peer in _peers(row) if peer in largest]
    return f"{largest['vtkernels']:.1e}" + (f" / {min(theirs):.1e}" if theirs else "") if "vtkernels" in largest else ""


def _beside_the_fastest(results: list[Result]) -> Iterator[tuple[str, list[float]]]:
    """Of every result and phase, how many times as fast as the fastest peer of each row we are."""
    for result in results:
        found: dict[str, list[float]] = {}
        for row in result["rows"]:
            unit, times = _times(row) or ("", {})
            ratios = [_ratio(unit, _ours(row), times[peer]) for peer in _peers(row) if peer not in OURS_TOO] if times else []
            if any(ratios):
                phase = row.get("task") or row.get("phase") or row["optimizer"]
                found.setdefault(plots.TITLES.get(phase, phase), []).append(min(filter(None, ratios)))
        yield from ((f"{_title(result)}, {phase}", ratios) for phase, ratios in found.items())


def _overview(results: list[Result], path: Path) -> bool:
    """A bar for the geometric mean over the rows, a line from the worst to the best; False if nothing was compared."""
    lines = list(_beside_the_fastest(results))[::-1]
    if not lines:
        return False
    with figure(path, 12, 1.2 + 0.3 * len(lines)) as drawn:
        drawn.suptitle("Speed beside the fastest peer of each row; in brackets how many rows", fontsize=11)
        axes = drawn.subplots()
        for place, (_, ratios) in enumerate(lines):
            mean = statistics.geometric_mean(ratios)
            axes.barh(place, mean - 1, left=1, height=0.6, color=BLUE if mean >= 1 else VERMILION, alpha=0.6)
            axes.plot([min(ratios), max(ratios)], [place, place], color="black", linewidth=1)
            axes.annotate(f"{mean:.2f}x", (max(ratios), place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.1, y=0.01)
        axes.set_yticks(range(len(lines)), [f"{label} ({len(ratios)})" for label, ratios in lines], fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xlabel="times as fast: mean, worst and best")
        _plain_numbers(axes.xaxis)
    return True


def _plain_numbers(axis: Any) -> None:
    """0.5, 1, 2, 5, 10, 20, ... rather than powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _roofline(results: list[Result], path: Path) -> bool:
    """Arithmetic over intensity of every row that counts both, below the lines measured in the same process; False if no row does."""
    points = [(result, row["GFLOPs"] / row["GBps"], row["GFLOPs"]) for result in results for row in result["rows"] if row.get("GFLOPs") and row.get("GBps")]
    points = [point for point in points if point[0]["dtype"] in point[0].get("peaks", {}).get("GFLOPs", {})]
    if not points:
        return False
    span = [min(x for _, x, _ in points) / 4, max(x for _, x, _ in points) * 4]
    with figure(path, 8, 5) as drawn:
        axes = drawn.subplots()
        kinds = list(dict.fromkeys(_kind(result) for result, _, _ in points))
        ops = dict(zip(dict.fromkeys(result["benchmark"] for result, _, _ in points), itertools.cycle(MARKERS)))
        for kind, colour in zip(kinds, itertools.cycle(SERIES)):
            alike = [point for point in points if _kind(point[0]) == kind]
            dtype = alike[0][0]["dtype"]
            limits = max((result["peaks"] for result, _, _ in alike), key=lambda peaks: peaks["GFLOPs"][dtype])
            peak, copy = limits["GFLOPs"][dtype], limits["copy_GBps"]
            xs = sorted([*span, *([peak / copy] if span[0] < peak / copy < span[1] else [])])
            axes.plot(xs, [min(peak, copy * x) for x in xs], color=colour, label=f"{kind}: {peak:.0f} GFLOP/s, copy {copy:.0f} GB/s")
            for op, marker in ops.items():
                of_op = [point for point in alike if point[0]["benchmark"] == op]
                axes.plot([x for _, x, _ in of_op], [y for _, _, y in of_op], marker, color=colour, alpha=0.5, markersize=5)
        for op, marker in ops.items():
            axes.plot([], [], marker, color="black", markersize=5, label=op.replace("_", " "))
        axes.set(xscale="log", yscale="log", xlabel="FLOP for each byte that must move", ylabel="GFLOP/s", title="Our kernels below this machine's limits")
        for axis in (axes.xaxis, axes.yaxis):
            _plain_numbers(axis)
        drawn.legend(loc="outside lower center", ncols=1)
    return True


def _kind(result: Result) -> str:
    """What has limits of its own."""
    threads = result["environment"]["threads"]
    isa = result["environment"]["isa"] if result["device"] == "cpu" else None
    return ", ".join(filter(None, (result.get("dtype"), isa, f"{threads} thread{'s' * (threads > 1)}" if isa else result["environment"]["device"])))


def _picture(path: Path) -> str:
    return f"<p><img alt='{escape(path.stem)}' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'></p>"
