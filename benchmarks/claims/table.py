"""All claims that were run, and what became of them: `python -m benchmarks.claims.table`, which also writes the README beside the results."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.claims.result import told

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the devices' results")
    options = parser.parse_args(arguments)
    folders = sorted(path for path in options.results.glob("*/claims") if any(path.glob("*.json")))
    if not folders:
        print(f"no claims in {report.shown(options.results)}; python -m benchmarks.claims.data_hunger tests the first")
        return 1
    for folder in folders:
        results = [json.loads(path.read_text()) | {"file": path.stem} for path in sorted(folder.glob("*.json"))]
        results = [result for result in results if result.get("benchmark") == "claim"]
        if not results:
            continue
        rows = [[result["title"], result["scale"], str(seeds_of(result)), result["words"]] for result in results]
        report.print_table(f"claims on {results[0]['environment']['device']}", ["claim", "scale", "seeds", "what became of it"], rows)
        (folder / "README.md").write_text(page(results))
    return 0


def seeds_of(result: dict[str, Any]) -> int:
    return max((part.get("count", 0) for part in result["parts"]), default=0)


def anchor(result: dict[str, Any]) -> str:
    return result["file"].replace("_", "-")


def page(results: list[dict[str, Any]]) -> str:
    lines = ["# Claims of the sources, tested here", "", f"{results[0]['rule']}", ""]
    lines += ["Written by `python -m benchmarks.claims.table` from the JSON files beside it.", ""]
    if any(result["scale"] == "tiny" for result in results):
        lines += ["At tiny scale the smallest models learn digits in a few hundred updates: what holds or fails there need not do so at full size.", ""]
    lines += ["| claim | scale | seeds | what became of it |", "|---|---|---|---|"]
    for result in results:
        lines.append(f"| [{result['title']}](#{anchor(result)}) | {result['scale']} | {seeds_of(result)} | {result['words']} |")
    for result in results:
        environment = result["environment"]
        lines += ["", f"## {anchor(result)}", "", f"{result['says']} ({result['source']}). {result['words']}", ""]
        lines += [f"![{result['title']}]({result['file']}.png)", "", "| part | paired difference, 95 % interval | verdict |", "|---|---|---|"]
        lines += [f"| {part['says']} | {told(part)} | {part['verdict']} |" for part in result["parts"]]
        lines += ["", f"{environment['device']}, torch {environment['versions']['torch']}, commit {environment['commit']}, {environment['date']}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
