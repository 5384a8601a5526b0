"""The page of all benchmarks: what it says is what the files say."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vtkernels.cli import bench

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "amd-epyc"
pytest.importorskip("matplotlib")


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "benchmarks" / "all.py", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_result_is_on_a_page_that_needs_nothing_else(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    done = run("--page-only", "--out", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "results" / "page.html").read_text()
    files = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    files = [found for found in files if {"benchmark", "rows", "environment"} <= set(found)]
    assert page.count("<table>") == len(files)
    assert "src='http" not in page and page.count("src='data:image/png;base64,") >= 1
    (step,) = (found for found in files if found["benchmark"] == "train_step" and "cait" in found["rows"][0]["name"])
    row = step["rows"][0]
    ratio = row["ms"]["timm"] / row["ms"]["vtkernels"]
    assert f"{ratio:.2f}x" in page.partition(f"<td>{row['name']}")[2].partition("</tr>")[0]
    assert all((tmp_path / "results" / f"{name}.png").exists() for name in ("overview", "roofline"))


def test_the_overview_compares_with_the_fastest_peer_of_each_row(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = importlib.import_module("page")
    environment = {"threads": 2, "isa": "avx2", "device": "a processor"}
    times = {"vtkernels": 2.0, "accelerated": 2.1, "eager": 8.0, "inductor": 6.0, "plain": 1.0}
    rows = [{"name": name, "phase": "forward", "ms": times} for name in ("small", "large")]
    result = {"benchmark": "sam", "device": "cpu", "dtype": "float32", "environment": environment, "rows": rows}
    assert list(page._beside_the_fastest([result])) == [("sam, float32, avx2, 2 threads, forward", [3.0, 3.0])]


def test_a_page_of_nothing_is_refused(tmp_path):
    done = run("--page-only", "--out", tmp_path)
    assert done.returncode == 1 and "found none" in done.stderr


def test_an_interruption_ends_with_a_page_of_what_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("all")
    begun = []

    def measure(command, **_):
        begun.append(Path(command[1]).name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        shutil.copy(RESULTS / "augmix.json", tmp_path)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", measure)
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["all.py", "--out", str(tmp_path)])
    assert script.main() == 1
    assert begun == list(script.SCRIPTS)[:2]
    # nobody shall take the processor's figures for the GPU's
    assert "make gpu-check" in capsys.readouterr().out
    assert f"{begun[1]} failed: interrupted" in (tmp_path / "page.html").read_text()


def test_the_command_waits_for_the_page_of_an_interrupted_script(monkeypatch):
    class Script:
        answers = iter((KeyboardInterrupt, 1))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            if (answer := next(self.answers)) is KeyboardInterrupt:
                raise KeyboardInterrupt
            return answer

    monkeypatch.setattr(bench.subprocess, "Popen", lambda command: Script())
    assert bench.bench([]) == 1


def test_an_installed_package_says_where_the_benchmarks_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.vtkernels, "__file__", str(tmp_path / "vtkernels" / "__init__.py"))
    assert bench.bench([]) == 2
    assert "clone the repository" in capsys.readouterr().err
