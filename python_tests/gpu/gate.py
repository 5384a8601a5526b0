"""Static performance gate: build the kernels for several GPUs and hold their machine code to reviewed budgets. No GPU needed.

python -m python_tests.gpu.gate            the quick builds against budgets.json
python -m python_tests.gpu.gate --full     all builds
python -m python_tests.gpu.gate --report   the same, with the numbers of each build
python -m python_tests.gpu.gate --update   rewrite this Triton's budgets from what is built now; review the change like code

Budgets are kept for each minor version of Triton, since the allocation of registers moves between versions. A version
without budgets is held to the newest known one with more slack.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import triton

from python_tests.gpu.aot import MachineCode
from python_tests.gpu.kernels import Case, cases

BUDGETS = Path(__file__).with_name("budgets.json")
VERSION = ".".join(triton.__version__.split(".")[:2])
CEILINGS = ("registers", "shared", "loop", "loop_spills")
FLOORS = ("blocks", "products")
# What memory gives a multiprocessor of an A100 80GB, an H200 and a B200 in one cycle, by their data sheets
BYTES_PER_CYCLE = {80: 13.4, 90: 18.4, 100: 27.5}
TENSOR_CORE = {80: r"HMMA\.", 90: r"HGMMA\.", 100: r"UTCHMMA"}


def numbers(case: Case, code: MachineCode) -> dict[str, int]:
    """What budgets hold of one build; of window attention also the cycles a window and head take to issue, beside those to move."""
    row = {field: asdict(code)[field] for field in CEILINGS + FLOORS}
    if case.work is None:
        return row
    # four schedulers issue one instruction each
    iterations_of_body = max(1, round(code.exponentials / case.work.exponentials)) if case.work.exponentials else 1
    issue = code.loop * case.work.iterations * code.warps / iterations_of_body / 4
    return row | {"issue_cycles": round(issue), "memory_cycles": round(case.work.moved / BYTES_PER_CYCLE[case.arch])}


def breaches(case: Case, code: MachineCode, budgets: dict[str, dict], version: str = VERSION) -> list[str]:
    """What is wrong with one build, as sentences."""
    return [f"{case.name}: {what}" for what in _rules(case, code) + _over_budget(case, code, budgets, version)]


def _rules(case: Case, code: MachineCode) -> list[str]:
    """What holds without any budget."""
    wrong = []
    if code.has(r"(ATOMG|REDG?|ATOM)\."):
        wrong.append("global atomics, which would make gradients differ from run to run")
    if not case.strict:
        return wrong
    if code.loop_spills:
        wrong.append(f"{code.loop_spills} accesses to spilled registers in the loop")
    if case.products and not code.has(TENSOR_CORE[case.arch if case.wide_rows else 80]):
        wrong.append("no tensor-core instructions")
    if not code.has(r"LDG(STS)?\.E.*\.128"):
        wrong.append("no 16-byte global loads")
    # a kernel that only adds up stores one number
    if case.stores_rows and "square_sum" not in case.name and " loss " not in case.name and not code.has(r"STG\.E.*\.128"):
        wrong.append("no 16-byte global stores")
    return wrong


def _over_budget(case: Case, code: MachineCode, budgets: dict[str, dict], version: str) -> list[str]:
    known = budgets.get(version)
    slack = 1.02 if known else 1.15
    budget = (known or budgets[max(budgets, key=_as_numbers)]).get(case.name)
    if budget is None:
        return ["has no budget; run python -m python_tests.gpu.gate --update and review budgets.json"]
    found = numbers(case, code)
    ceilings = (*CEILINGS, "issue_cycles") if case.work else CEILINGS
    wrong = [f"{name} {budget[name]} -> {found[name]}" for name in ceilings if found[name] > budget[name] * slack]
    # fewer resident blocks or products are a step, not a drift: no slack, but no judgement across versions either
    return wrong + [f"{name} {budget[name]} -> {found[name]}" for name in FLOORS if known and found[name] < budget[name]]


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def load() -> dict[str, dict]:
    return json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}


def check(chosen: Iterable[Case], report: bool = False) -> tuple[int, list[str]]:
    """How many builds were made, and what is wrong with them."""
    budgets, wrong, count = load(), [], 0
    for case in chosen:
        code = case.kernel.compile(case.arch)
        wrong += breaches(case, code, budgets)
        count += 1
        if report:
            print(case.name, *(f"{name}={value}" for name, value in numbers(case, code).items()))
    return count, wrong


def update() -> None:
    rows = {case.name: numbers(case, case.kernel.compile(case.arch)) for case in cases()}
    BUDGETS.write_text(json.dumps(load() | {VERSION: rows}, indent=1, sort_keys=True) + "\n")


def main() -> int:
    if "--update" in sys.argv:
        update()
    full = "--full" in sys.argv or "--update" in sys.argv
    count, wrong = check((case for case in cases() if full or case.quick), "--report" in sys.argv)
    print(f"triton {triton.__version__}: {count} builds, {len(wrong)} breaches", *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
