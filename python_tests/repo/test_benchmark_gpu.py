"""The scripts for a GPU, tried on a CPU: what they write, what they refuse to time, and that one failure does not end a run."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optional import peer

from vtkernels._core import testing
from vtkernels._core.op import OPS, Backend, Op

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The scripts, with limits that need no measuring, two correctness checks, and no plots."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_check
    import gpu_correctness
    import gpu_models
    import gpu_ops
    import gpu_plots
    import gpu_run
    import peaks

    limits = peaks.Peaks(1e9, {"float32": 1e9, "bfloat16": 1e9, "float16": 1e9}, "made up")
    monkeypatch.setattr(peaks, "measure", lambda device: limits)
    case = next(case.name for case in testing.cases("drloc_pairs") if case.representative)
    checks = [gpu_correctness.Check("drloc_pairs", case, "float32", backend) for backend in ("cpu", "reference")]
    monkeypatch.setattr(gpu_correctness, "checks", lambda device, dry: checks)
    monkeypatch.setattr(gpu_check, "time_sam", lambda run, limits: None)
    monkeypatch.setattr(gpu_plots, "draw", lambda path: None)

    def run(minutes: float = 5.0) -> gpu_run.Run:
        return gpu_run.Run("gpu_check", "cpu", minutes, tmp_path, dry=True)

    first = {row.op: row for row in gpu_ops.comparisons(4)[: len(gpu_ops.FAMILIES)]}
    return SimpleNamespace(
        check=gpu_check, correctness=gpu_correctness, models=gpu_models, ops=gpu_ops, run=gpu_run, start=run, first=first, limits=limits, folder=tmp_path
    )


def saved(gpu) -> dict:
    (path,) = gpu.folder.glob("*/gpu_*.json")
    return json.loads(path.read_text())


def test_every_op_is_compared_and_has_its_bar(gpu):
    rows = gpu.ops.comparisons()
    assert set(gpu.ops.FAMILIES) == {op for op in OPS if testing.has_gradients(op) and "triton" in OPS[op].backend_names} - {"jsd_consistency"}
    assert [row.op for row in rows[: len(gpu.ops.FAMILIES)]] == list(gpu.ops.FAMILIES)
    assert rows[0].case.name == "swin_t/stage1/shift3"
    bars = {(row.op, row.case.name): row.bars for row in rows}
    assert bars["window_attention", "swin_t/stage2/shift3"] == (
        ("forward", 0.75, None),
        ("backward", 0.65, None),
        ("forward", 4.0, "timm_sdpa"),
        ("training", 3.0, "timm_sdpa"),
    )
    assert bars["window_attention", "swin_t/stage4/shift0"][:3] == (("forward", 0.5, None), ("backward", 0.45, None), ("forward", 2.0, "timm_sdpa"))
    assert bars["augmix_loss", "k1000/b4096"] == (("training", 0.6, None),)
    assert bars["class_attention", "cait_s24/197"][0] == ("forward", 0.7, None)


@pytest.mark.parametrize("op", ["pooled_attention", "drloc_pairs"])
def test_what_will_be_timed_is_run_beforehand(gpu, monkeypatch, op):
    ran = []

    def select(op, phase, backend, call):
        ran.append(phase)
        return op.backend("reference").phases[phase]

    monkeypatch.setattr(gpu.ops, "comparisons", lambda: [gpu.first[op]])
    with pytest.raises(RuntimeError, match="CUDA"):
        gpu.ops.build(gpu.first[op].name, "cpu")
    monkeypatch.setattr(Op, "select", select)
    gpu.ops.build(gpu.first[op].name, "cpu", "reference")
    # the op's own backward, then both phases as they are timed
    assert sorted(ran) == ["backward"] * 2 + ["forward"] * 3


@pytest.mark.parametrize("op", ["pooled_attention", "drloc_pairs", "augmix_loss"])
def test_a_row_has_times_shares_ratios_and_bars(gpu, op):
    assert gpu.check.check(gpu.start(), [gpu.first[op]]) == 0
    result = saved(gpu)
    assert (result["skipped"], result["failed"], result["wrong"], result["checked"]) == ([], {}, [], 2)
    assert [row["phase"] for row in result["rows"]] == ["forward", "backward", "training"]
    for row in result["rows"]:
        milliseconds = row["device_ms"]
        assert row["share_of_copy"] == pytest.approx(row["bytes"] / (1e-3 * milliseconds["vtkernels"]) / 1e9, rel=1e-3)
        eager = set(gpu.ops.FAMILIES[op].eager) if row["phase"] != "backward" else set()
        assert row["refused"] == {} and eager <= set(row["ratio"]) and "vtkernels" not in row["ratio"]
        assert len(row["bars"]) == sum(bar.phase == row["phase"] for bar in gpu.first[op].bars)
    assert {"device", "commit", "versions"} <= set(result["environment"])


def test_compiled_peers_have_rows_of_their_own(gpu, monkeypatch):
    family = dataclasses.replace(gpu.ops.FAMILIES["pooled_attention"], compiled=("sdpa",))
    monkeypatch.setitem(gpu.ops.FAMILIES, "pooled_attention", family)
    run = gpu.start()
    run.result["rows"] = []
    gpu.check.time_op(run, gpu.first["pooled_attention"], gpu.limits, compiled=True)
    assert [(row["phase"], row["compiled"], list(row["ratio"])) for row in run.result["rows"]] == [("forward", True, ["sdpa"]), ("training", True, ["sdpa"])]


def test_rows_of_a_wrong_op_say_so(gpu, monkeypatch):
    right = testing.judge_outcome

    def judge(op, backend, *rest):
        (first, *others) = right(op, backend, *rest)
        return [first.__class__(*(vars(first) | {"error": 1.0, "budget": 0.5}).values()), *others]

    monkeypatch.setattr(testing, "judge_outcome", judge)
    assert gpu.check.check(gpu.start(), [gpu.first["drloc_pairs"], gpu.first["pooled_attention"]]) == 1
    result = saved(gpu)
    assert len(result["wrong"]) == 2 and "drloc_pairs, backend cpu" in result["wrong"][0]
    # every side passes a gate of its own before it is timed
    assert {(row["op"], row["wrong"]) for row in result["rows"]} == {("drloc_pairs", 2), ("pooled_attention", 0)}


def test_a_side_that_fails_the_gate_has_no_time(gpu, monkeypatch):
    backend = OPS["pooled_attention"].backend("reference")
    off = {"forward": lambda call: tuple(1.01 * part for part in backend.phases["forward"](call)), "backward": backend.phases["backward"]}
    monkeypatch.setitem(OPS["pooled_attention"]._loaded, "cpu", Backend("cpu", lambda phase, call: None, off))
    run = gpu.start()
    gpu.check.check(run, [gpu.first["pooled_attention"]])
    row = saved(gpu)["rows"][0]
    assert "device_ms" not in row and "ratio" not in row
    assert row["refused"]["vtkernels"].startswith("Wrong: out is off by 1.0e-02")


def test_one_failure_does_not_end_the_run(gpu, monkeypatch, capsys):
    def breaks(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")

    broken = gpu.ops.FAMILIES["drloc_pairs"].__class__(breaks, breaks, (), ())
    monkeypatch.setitem(gpu.ops.FAMILIES, "drloc_pairs", broken)
    monkeypatch.setattr(gpu.correctness, "problems", breaks)
    assert gpu.check.check(gpu.start(), [gpu.first["drloc_pairs"], gpu.first["pooled_attention"]]) == 1
    result = saved(gpu)
    assert len(result["failed"]) == 3 and all("out of memory" in reason for reason in result["failed"].values())
    assert len(result["rows"]) == 3
    assert "failed: data of drloc_pairs" in capsys.readouterr().out


def test_a_peer_that_fails_while_timed_is_told_and_the_others_are_timed(gpu):
    calls = []

    def fails_later():
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    sides = [gpu.check.Side("vtkernels", lambda: None), gpu.check.Side("peer", fails_later)]
    row = gpu.check.measured(gpu.start(), sides, [], {}, {}, 1000, 1000, gpu.limits)
    assert set(row["device_ms"]) == {"vtkernels"} and row["ratio"] == {}
    assert row["refused"] == {"peer": "OutOfMemoryError: CUDA out of memory"}


def test_no_time_left_is_told(gpu):
    assert gpu.check.check(gpu.start(minutes=0.0), [gpu.first["drloc_pairs"]]) == 0
    result = saved(gpu)
    assert result["rows"] == [] and len(result["skipped"]) == 3 and all(line.endswith("no time left") for line in result["skipped"])


@pytest.fixture
def lost_device(gpu, monkeypatch):
    """A run whose device breaks, and the programs that take its place: none, here."""

    def dead(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    run, started = gpu.start(), []
    run.device = "cuda"
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    monkeypatch.setattr(gpu.run.os, "execv", lambda path, arguments: started.append(arguments))
    monkeypatch.setattr(gpu.run.sys, "argv", ["gpu_check.py", "--dry"])
    return SimpleNamespace(run=run, dead=dead, started=started)


def test_behind_a_step_that_breaks_the_device_a_fresh_process_goes_on(gpu, lost_device):
    run = lost_device.run
    run.result["done"].append("an earlier one")
    assert run.attempt("a kernel", lost_device.dead) is None
    assert [arguments[1:] for arguments in lost_device.started] == [["gpu_check.py", "--dry", "--resume"]]
    fresh = gpu.run.Run("gpu_check", "cpu", 5.0, gpu.folder, dry=True, resume=True)
    assert fresh.result["failed"] == {"a kernel": "RuntimeError: CUDA error: an illegal memory access was encountered"}
    assert [fresh.attempt(name, lambda: 7) for name in ("an earlier one", "a kernel", "the next")] == [None, None, 7]
    assert fresh.attempt("an earlier one", lambda: 7, again=True) == 7
    assert fresh.clock.spent >= run.result["seconds"]


def test_a_step_that_hides_that_it_broke_the_device_has_failed(lost_device):
    assert lost_device.run.attempt("a row whose peer breaks it", lambda: {"refused": {"peer": "..."}}) is None
    assert lost_device.run.result["failed"] == {"a row whose peer breaks it": "RuntimeError: it broke the device's context"}


def test_a_device_that_breaks_again_and_again_ends_in_skipped_steps(gpu, lost_device, monkeypatch):
    run = lost_device.run
    monkeypatch.setattr(gpu.run, "RESTARTS", 0)
    assert run.attempt("a kernel", lost_device.dead) is None
    assert run.attempt("the next", lambda: 7) is None
    assert lost_device.started == []
    assert run.result["skipped"] == ["the next: the device does not answer any more"]
    assert run.finish() == 1


# a kernel without end; the process that takes the place of this one finds what was done, and does the rest
HANGS = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
import gpu_run
gpu_run.is_lost = lambda device: False
gpu_run.machine = dict
gpu_run.report.device_name = lambda device: "pretended"
gpu_run.free = lambda device: None
run = gpu_run.Run("gpu_check", "cuda", 5.0, pathlib.Path(sys.argv[2]), resume="--resume" in sys.argv)
run.attempt("first", lambda: print("first", flush=True))
run.attempt("endless", lambda: time.sleep(1000), patience=0.5)
run.attempt("last", lambda: print("last", flush=True))
sys.exit(run.finish())
"""


def test_a_step_without_end_is_ended(gpu):
    script = gpu.folder / "hangs.py"
    script.write_text(HANGS)
    done = subprocess.run([sys.executable, script, BENCHMARKS, gpu.folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert [line for line in done.stdout.splitlines() if line in ("first", "last")] == ["first", "last"]
    result = saved(gpu)
    assert (result["failed"], result["done"], result["restarts"]) == ({"endless": "it did not end"}, ["first", "last"], 1)


@pytest.mark.slow
def test_checks_are_made_by_several_processes(gpu, monkeypatch):
    monkeypatch.setattr(gpu.correctness, "PATIENCE", 900.0)
    asked = [*gpu.correctness.checks("cpu", True), gpu.correctness.Check("drloc_pairs", "no such case", "float32", "cpu")]
    answers = dict(gpu.correctness._together(asked, gpu.start(), 900.0, 2))
    assert [answers[check] for check in asked[:-1]] == [gpu.correctness.Answer([])] * 2
    assert answers[asked[-1]].failed.startswith("StopIteration")


def test_without_other_processes_checks_are_made_in_this_one(gpu, monkeypatch):
    class Dead:
        def __init__(self, device):
            self.pipe, theirs = gpu.correctness.multiprocessing.Pipe()
            theirs.close()
            self.process = SimpleNamespace(join=lambda seconds: None, kill=lambda: None, exitcode=1)
            self.check, self.until = None, 0.0

        ask, answer, end = (getattr(gpu.correctness._Other, name) for name in ("ask", "answer", "end"))

    monkeypatch.setattr(gpu.correctness, "_Other", Dead)
    asked = gpu.correctness.checks("cpu", True) * 5
    answers = [answer for _, answer in gpu.correctness._together(asked, gpu.start(), 300.0, 1)]
    assert [answer.failed for answer in answers] == ["its process ended with 1"] * 2 + [None] * (len(asked) - 2)


def test_no_check_is_made_when_the_time_is_over(gpu):
    asked = gpu.correctness.checks("cpu", True)
    run = gpu.start()
    assert [answer for _, answer in gpu.correctness._together(asked, run, 0.0, 2)] == [None] * len(asked)


@pytest.mark.parametrize("op", OPS)
def test_a_case_is_known_by_its_name(op):
    names = [case.name for case in testing.cases(op)]
    assert len(set(names)) == len(names)


def test_bars_and_shifts(gpu):
    row = {"share_of_copy": 0.7, "ratio": {"timm_sdpa": 4.5}}
    comparison = gpu.first["window_attention"]
    assert [(bar["least"], bar["met"]) for bar in gpu.ops.verdicts(comparison, "forward", row)] == [(0.75, False), (4.0, True)]
    missing = gpu.ops.verdicts(comparison, "training", {"share_of_copy": 0.7, "ratio": {}})
    assert [(bar["found"], bar["met"]) for bar in missing] == [(None, False)]
    rows = [
        {"op": "window_attention", "case": f"swin_t/stage1/{shift}", "phase": "forward", "device_ms": {"vtkernels": milliseconds}}
        for shift, milliseconds in (("shift0", 1.0), ("shift3", 1.05))
    ]
    (found,) = gpu.check.shifts(rows)
    assert found["found"] == pytest.approx(1.05) and not found["met"]


def test_sam_steps_are_timed_beside_their_peers(gpu, monkeypatch):
    monkeypatch.undo()
    monkeypatch.syspath_prepend(BENCHMARKS)
    run = gpu.start()
    gpu.check.time_sam(run, gpu.limits)
    (row,) = run.result["sam"]
    assert run.result["failed"] == {}
    assert {"vtkernels (cpu)", "published", "foreach_fused"} <= set(row["share_of_copy"])


@pytest.fixture
def tiny_models(gpu):
    peer("timm")
    plan = gpu.models.Plan(batch=1, rounds=1, calls=1, compiled=False, image=32)
    return SimpleNamespace(start=lambda: gpu.run.Run("gpu_models", "cpu", 5.0, gpu.folder, dry=True), plan=plan, name="vit_tiny_patch16_224")


@pytest.mark.slow
def test_models_are_timed_in_both_modes(gpu, tiny_models):
    assert gpu.models.measure(tiny_models.start(), [tiny_models.name], ["inference", "training"], tiny_models.plan) == 0
    inference, training = saved(gpu)["rows"]
    assert set(inference["images_per_second"]) >= {"timm", "vtkernels"}
    assert set(training["images_per_second"]) >= {"timm", "vtkernels", "vtkernels SAM"}
    assert inference["images_per_second"]["vtkernels"] == pytest.approx(1e3 / inference["ms"]["vtkernels"], rel=1e-3)


def test_a_model_with_wrong_logits_or_none_is_not_timed(gpu, tiny_models, monkeypatch):
    bench = gpu.models.Bench

    def wrong(self):
        model = self._timm()
        torch.nn.init.zeros_(model.head.weight)
        return model

    def missing(self):
        raise ValueError("create_model: no model is called so")

    monkeypatch.setattr(bench, "_accelerated", wrong)
    monkeypatch.setattr(bench, "_ours", missing)
    assert gpu.models.measure(tiny_models.start(), [tiny_models.name], ["inference"], tiny_models.plan) == 0
    (row,) = saved(gpu)["rows"]
    assert set(row["images_per_second"]) == {"timm"}
    assert row["refused"]["timm + vt.accelerate"].startswith("ValueError: logits are off by")
    assert row["refused"]["vtkernels"] == "ValueError: create_model: no model is called so"


def test_swin_over_vit(gpu):
    def row(model, speed):
        return {"model": model, "mode": "training", "compiled": False, "images_per_second": {"vtkernels": speed}}

    (goal,) = gpu.models.goals([row(gpu.models.MODELS[0], 66.0), row(gpu.models.MODELS[1], 100.0)])
    assert goal["found"] == pytest.approx(0.66) and goal["met"]


@pytest.mark.slow
def test_plots_are_drawn(gpu, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_plots

    bars = [{"what": "share of copy", "least": 0.7, "found": 0.6, "met": False}]
    row = {
        "op": "class_attention",
        "case": "a",
        "phase": "forward",
        "device_ms": {"vtkernels": 1.0},
        "share_of_copy": 0.6,
        "ratio": {"timm": 2.0},
        "bars": bars,
    }
    common = {"dry": True, "environment": {"device": "none", "versions": {"torch": "2"}}}
    for name, rest in (
        ("gpu_check", {"rows": [row], "sam": []}),
        ("gpu_models", {"rows": [{"mode": "training", "model": "vit", "images_per_second": {"timm": 1.0, "vtkernels": 2.0}, "peak_GB": {}}]}),
    ):
        path = gpu.folder / f"{name}.json"
        path.write_text(json.dumps({"benchmark": name, **common, **rest}))
        assert gpu_plots.draw(path).stat().st_size > 1000
