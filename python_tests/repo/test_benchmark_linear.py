"""The benchmark of linear layers: what is wrong is not timed, bfloat16 inside is wrong, and the script runs."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def linear(monkeypatch):
    """The module of `linear.py`, and a small problem."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    sys.modules.pop("linear", None)
    import linear

    from vtkernels.ops.linear.cases import bench_cases

    (case,) = bench_cases("mlp", [4], 1)
    return SimpleNamespace(script=linear, problem=linear.Problem("mlp", case, torch.float32, "cpu"))


def options(**changes):
    return SimpleNamespace(**{"peers": ["eager"], "medium": False, "backend": "torch"} | changes)


@pytest.mark.parametrize("phase", ["forward", "training"])
def test_eager_peers_pass_the_gate(linear, phase):
    sides, _, refused = linear.script.admit(linear.problem, phase, options())
    assert refused == {} and [side.name for side in sides] == ["vtkernels", "eager"]


def test_bfloat16_inside_is_not_timed(linear, monkeypatch):
    def rounded(x, w1, b1, w2, b2, activation):
        return F.linear(F.gelu(F.linear(x.bfloat16().float(), w1, b1)), w2, b2)

    monkeypatch.setitem(linear.script.PEERS, "eager", lambda op: rounded)
    sides, _, refused = linear.script.admit(linear.problem, "training", options())
    assert refused["eager"].startswith("Wrong: out is off by") and [side.name for side in sides] == ["vtkernels"]


def test_the_flops_are_those_of_six_products(linear):
    assert linear.problem.flops("training") == 6 * 2 * 49 * 768 * 3072


def test_the_script_runs(linear, monkeypatch, tmp_path, capsys):
    threads = torch.get_num_threads()
    given = ["--quick", "--rounds", "1", "--threads", "1", "--ops", "mlp", "--stages", "4", "--batch", "1", "--backend", "torch", "--out"]
    monkeypatch.setattr(sys, "argv", ["linear.py", *given, str(tmp_path)])
    try:
        linear.script.main()
    finally:
        torch.set_num_threads(threads)
    assert "over eager" in capsys.readouterr().out
    (path,) = tmp_path.glob("*/mlp_float32_1t_quick.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["phase"] for row in rows] == ["forward", "training"] and all(row["fastest"]["name"] == "eager" for row in rows)
