"""All claims that were run, and what became of them: `python -m benchmarks.claims.table`, which also writes docs/claims.md."""

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.claims.judgement import HELD, NOT, OPPOSITE, UNKNOWN, WEAKLY
from benchmarks.claims.result import told

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "claims.md"
HEADER = ("claim", "seeds", "parts", HELD, WEAKLY, NOT, OPPOSITE)
# what a reader must not overlook
FAILURES = {NOT: "Did not hold here", OPPOSITE: "The opposite held here", UNKNOWN: "Not known, for want of runs"}
PROMISE = """Papers promise things, and not all of them repeat. Each claim is tested by training all of its arms from the same seeds. {rule} The rule and
the arms stood before anything was run, but for two things. Of DRLOC, data hunger, depth and the ablation the number of updates was raised once, since
a first seed had shown models that had hardly learnt. And initial weights were made alike: Swin, whose small ones had left it at 88 to 93 % in the
first two, was trained again with the larger ones that ViT has there; ViT, in depth, with ones as small as CaiT's. The time of a run is that of the
clock."""
INTRODUCTION = """# Claims of the sources, tested here

<!-- written by `python -m benchmarks.claims.table` from the results, whatever is changed here is lost -->

{promise}

At tiny scale the smallest models of the families learn digits or drawn shapes by some hundred updates: what holds or fails there need not do so at
full size. `python -m benchmarks.claims.NAME --scale full --path FOLDER` tests the same claim with the published recipes on a GPU;
[benchmarks/README.md](../benchmarks/README.md) has the details. With many parts, some intervals exclude zero by chance: one in forty on either side.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the devices' results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the document that is written")
    options = parser.parse_args(arguments)
    devices = results_of(options.results)
    if not devices:
        print(f"no claims in {report.shown(options.results)}; python -m benchmarks.claims.distillation tests the first")
        return 1
    for folder, results in devices.items():
        report.print_table(f"claims on {device_of(results)}, {folder.parent.name}", [*HEADER, "minutes"], [row(result) for result in results])
        print(f"\n{cost(results)}")
    options.page.write_text(page(devices, options.page.parent))
    return 0


def results_of(folder: Path) -> dict[Path, list[dict[str, Any]]]:
    """Of each device, by its folder."""
    found = {}
    for own in sorted(folder.glob("*/claims")):
        results = [json.loads(path.read_text()) | {"file": path.stem} for path in sorted(own.glob("*.json"))]
        if results := [result for result in results if result.get("benchmark") == "claim"]:
            found[own] = results
    return found


def page(devices: dict[Path, list[dict[str, Any]]], beside: Path) -> str:
    """`beside`: the folder from which its links lead."""
    (first, *_), *_ = devices.values()
    promise = textwrap.fill(PROMISE.format(rule=first["rule"]), 150)
    lines = [INTRODUCTION.format(promise=promise)]
    for folder, results in devices.items():
        where = Path(os.path.relpath(folder, beside)).as_posix()
        lines += [f"## On {device_of(results)}", "", cost(results), ""]
        lines += [table_row([*HEADER, "minutes"]), table_row(["---"] * (len(HEADER) + 1))]
        for result in results:
            name, *cells = row(result)
            lines.append(table_row([f"[{name}](#{anchor(result)})", *cells]))
        for result in results:
            lines += ["", *section(result, where)]
        lines.append("")
    return "\n".join(lines)


def section(result: dict[str, Any], where: str) -> list[str]:
    environment = result["environment"]
    lines = [f"### {heading(result)}", "", f"{result['says']} ({result['source']}).", "", f"**{result['words']}**"]
    for verdict, words in FAILURES.items():
        if failed := [f"{part['says']} ({told(part)})" for part in result["parts"] if part["verdict"] == verdict]:
            lines.append(f"{words}: {'; '.join(failed)}.")
    lines += ["", result["limits"]] if result.get("limits") else []
    updates = f", about {result['updates']} updates an arm" if result.get("updates") else ""
    lines += ["", f"![{result['title']}: arms and parts]({where}/{result['file']}.png)", "", "| part | paired difference, 95 % interval | verdict |"]
    lines += ["|---|---|---|", *(table_row([part["says"], told(part), part["verdict"]]) for part in result["parts"]), ""]
    about = f"{seeds_of(result)} seeds{updates}, torch {environment['versions']['torch']}, commit {environment['commit']}, {environment['date']}"
    return [*lines, f"[Every run]({where}/{result['file']}.json): {about}."]


def heading(result: dict[str, Any]) -> str:
    return f"{result['title']} at {result['scale']} scale"


def anchor(result: dict[str, Any]) -> str:
    return heading(result).lower().replace("'", "").replace(" ", "-")


def row(result: dict[str, Any]) -> list[str]:
    counts = [sum(part["verdict"] == verdict for part in result["parts"]) for verdict in (HELD, WEAKLY, NOT, OPPOSITE)]
    return [heading(result), *map(str, (seeds_of(result), len(result["parts"]), *counts)), f"{minutes(result):.0f}"]


def table_row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def device_of(results: list[dict[str, Any]]) -> str:
    return results[0]["environment"]["device"]


def seeds_of(result: dict[str, Any]) -> int:
    return max((part.get("count", 0) for part in result["parts"]), default=0)


def minutes(result: dict[str, Any]) -> float:
    """Of one core; of the GPU where it was one."""
    threads = result["environment"]["threads"] if result["device"] == "cpu" else 1
    return result["seconds_of_all_runs"] * threads / 60


def cost(results: list[dict[str, Any]]) -> str:
    of = "one core, waiting on a busy machine included" if results[0]["device"] == "cpu" else "the GPU"
    return f"All runs together took {sum(map(minutes, results)):.0f} minutes of {of}."


if __name__ == "__main__":
    sys.exit(main())
