"""The benchmark of AugMix's loss: peers do what their originals do, what is wrong is not timed, and the script runs."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optional import peer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EAGER = ["augmix", "timm", "stable"]


@pytest.fixture
def jsd(monkeypatch):
    """The modules of `jsd.py`, which lie beside it, and a small problem."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import jsd
    from peers import jsd as peers

    from vtkernels.ops.jsd.cases import bench_cases

    (case,) = bench_cases([10], [16])
    return SimpleNamespace(script=jsd, peers=peers, problem=jsd.Problem(case, torch.float32, "cpu"))


def test_timms_peer_is_timms_class_to_the_bit(jsd):
    timms = peer("timm.loss").JsdCrossEntropy(3, 12, smoothing=0)
    assert torch.equal(timms(jsd.problem.logits, jsd.problem.target), jsd.peers.timm(jsd.problem.logits, jsd.problem.target))


@pytest.mark.parametrize("phase", ["forward", "training"])
def test_every_eager_peer_passes_the_gate(jsd, phase):
    gated = jsd.script.gate(jsd.problem, phase, EAGER, backend="reference")
    gated.refused.pop("kernel", None)
    assert gated.refused == {}
    assert {"vtkernels", *EAGER} <= {side.name for side in gated.sides}


def test_a_wrong_side_is_not_timed(jsd, monkeypatch):
    def right_but_for_its_gradient(logits, target):
        return jsd.peers.stable(logits.detach(), target) + (logits - logits.detach()).sum()

    monkeypatch.setitem(jsd.peers.PEERS, "stable", lambda: right_but_for_its_gradient)
    gated = jsd.script.gate(jsd.problem, "training", ["stable"], backend="reference")
    assert gated.refused["stable"].startswith("Wrong: gradient is off by")
    assert "stable" not in [side.name for side in gated.sides]


def test_the_bytes_are_the_logits_and_their_gradient(jsd):
    assert jsd.problem.bytes("forward") == 3 * 16 * 10 * 4
    assert jsd.problem.bytes("training") == 2 * jsd.problem.bytes("forward")


def test_the_script_runs(jsd, monkeypatch, tmp_path, capsys):
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--classes", "10", "--batches", "8", "--peers", "augmix", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["jsd.py", *arguments])
    try:
        jsd.script.main()
    finally:
        torch.set_num_threads(threads)
    assert "over published" in capsys.readouterr().out
    (path,) = tmp_path.glob("*/jsd_k10_float32_1t_quick.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["phase"] for row in rows] == ["forward", "training"]
    assert all(row["fastest"]["name"] == "augmix" and {"vtkernels", "augmix"} <= set(row["us"]) for row in rows)
