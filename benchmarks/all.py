"""Every benchmark of this machine, one after the other, and one page of all they found: `make bench`, or `vtkernels bench`.

python benchmarks/all.py                       # the quick forms: some ten minutes
python benchmarks/all.py --full                # every shape and peer: an hour or more
python benchmarks/all.py --page-only --out benchmarks/results/amd-epyc    # a page of results that are there
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import page
import report
import torch

# what a stranger wants to know first stands first; each with the flags of its quick form
SCRIPTS = {
    "attn.py": ["--quick"],
    "class_attn.py": ["--quick"],
    "talking_heads.py": ["--quick"],
    "jsd.py": ["--quick"],
    "drloc.py": ["--quick"],
    "sam.py": ["--quick"],
    "linear.py": ["--quick"],
    "augmix.py": ["--quick"],
    "train_step.py": ["--quick"],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="vtkernels bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every shape and every peer of each benchmark")
    parser.add_argument("--only", nargs="+", choices=[name.removesuffix(".py") for name in SCRIPTS], metavar="NAME", help="some of them")
    parser.add_argument("--page-only", action="store_true", help="measure nothing: a page of the results under --out")
    parser.add_argument("--out", type=Path, default=report.HERE / "out" / "all", help="folder of results and page")
    options = parser.parse_args()
    if torch.cuda.is_available() and not options.page_only:
        print("this measures the processor; make gpu-check and make gpu-bench measure the GPU")
    failed = {} if options.page_only else measure(options)
    found = {path: json.loads(path.read_text()) for path in sorted(options.out.rglob("*.json"))}
    # other things are kept beside them
    results = {path: result for path, result in found.items() if {"benchmark", "rows", "environment"} <= set(result)}
    if not results:
        print(f"benchmarks: expected results under {options.out}, found none; run without --page-only", file=sys.stderr)
        return 1
    written = page.write(results, options.out, failed)
    print(f"\nthe page of all results: {report.shown(written)}")
    return 1 if failed else 0


def measure(options: argparse.Namespace) -> dict[str, str]:
    """Run the scripts; of those that failed, the last words."""
    failed = {}
    for name, quick in SCRIPTS.items():
        if options.only and name.removesuffix(".py") not in options.only:
            continue
        started = time.monotonic()
        print(f"\n=== {name}", flush=True)
        command = [sys.executable, str(report.HERE / name), *([] if options.full else quick), "--out", str(options.out)]
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        except KeyboardInterrupt:
            failed[name] = "interrupted, and what comes after it was not begun"
            break
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            failed[name] = lines[-1] if lines else f"exit status {done.returncode}"
            print(f"{name} failed after {time.monotonic() - started:.0f} s: {failed[name]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
