"""What of an evaluation is done: a line for each set, on the disk before the next one begins."""

import json
import os
from pathlib import Path
from typing import Any

from vtkernels._core.check import fail


class Journal:
    """`done.jsonl`: what the numbers mean in its first line, then a set in each. A line that a kill cut short is written anew."""

    def __init__(self, folder: Path, meaning: dict[str, Any], restart: bool):
        self.path = folder / "done.jsonl"
        entries = [] if restart else self._read()
        if entries and entries[0].get("meaning") != meaning:
            before = entries[0].get("meaning") or {}
            differing = sorted(name for name in before.keys() | meaning.keys() if before.get(name) != meaning.get(name))
            fail("vtkernels eval", f"{folder}", "hold the same evaluation", f"one with another {', '.join(differing)}", "choose another --out, or --restart")
        self.done: dict[str, dict[str, Any]] = {entry["set"]: entry["metrics"] for entry in entries[1:]}
        folder.mkdir(parents=True, exist_ok=True)
        lines = [{"meaning": meaning}, *({"set": name, "metrics": metrics} for name, metrics in self.done.items())]
        beside = self.path.with_suffix(".writing")
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
        beside.replace(self.path)

    def add(self, name: str, metrics: dict[str, Any]) -> None:
        self.done[name] = metrics
        with self.path.open("a") as file:
            file.write(json.dumps({"set": name, "metrics": metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        entries = []
        for line in self.path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries
