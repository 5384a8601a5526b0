"""The benchmark of whole models: sides that are the model are timed, others are not, and the script runs."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optional import peer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODEL = "vit_tiny_patch16_224"


@pytest.fixture
def train_step(monkeypatch):
    """The modules of `train_step.py`, which lie beside it, and timm's model at a depth that suits a test."""
    timm = peer("timm")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import train_step
    import train_step_sides

    import vtkernels as vt

    ours = vt.create_model
    monkeypatch.setattr(train_step_sides, "timm_model", lambda name: timm.create_model(name, depth=2))
    monkeypatch.setattr(vt, "create_model", lambda name, **options: ours(name, depth=2, **options))
    return SimpleNamespace(script=train_step, sides=train_step_sides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_eager_side_passes_the_gate(train_step, dtype):
    problem = train_step.sides.Problem(MODEL, dtype, 1, "cpu")
    admitted = train_step.sides.gate(problem, ["vtkernels", "accelerated", "timm"], medium=False)
    assert admitted.refused == {}
    assert [side.name for side in train_step.sides.sides(problem, admitted, "training")] == ["vtkernels", "accelerated", "timm"]


def test_a_wrong_side_is_not_timed(train_step, monkeypatch):
    def changed(model, **options):
        with torch.no_grad():
            model.blocks[0].attn.qkv.weight[0].mul_(1.1)
        return model

    monkeypatch.setattr(train_step.sides.vt, "accelerate", changed, raising=False)
    problem = train_step.sides.Problem(MODEL, torch.float32, 1, "cpu")
    admitted = train_step.sides.gate(problem, ["accelerated", "timm"], medium=False)
    assert list(admitted.models) == ["timm"]
    assert admitted.refused["accelerated"].startswith("Wrong: logits are off by")


def test_steps_leave_the_weights_as_the_gate_saw_them(train_step):
    problem = train_step.sides.Problem(MODEL, torch.float32, 1, "cpu")
    model = train_step.sides.build(problem, "timm")
    train_step.sides.steps(problem, model)["training"]()
    assert all(torch.equal(value, problem.timm.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_script_runs(train_step, monkeypatch, tmp_path, capsys):
    arguments = ["--quick", "--models", MODEL, "--sides", "accelerated", "timm", "--batch", "1", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments])
    threads = torch.get_num_threads()
    try:
        train_step.script.main()
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*/train_step_float32_b1_1t_*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["phase"] for row in rows] == ["inference", "training"]
    assert all(row["images_per_s"].keys() == {"accelerated", "timm"} and row["times_faster"]["accelerated"]["timm"] > 0 for row in rows)
    assert "images per second" in capsys.readouterr().out
