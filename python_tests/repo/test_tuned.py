"""Measured launch parameters: who gets which, what a broken file does, and that a fake GPU with a fake clock tunes as a real one would."""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from vtkernels import cli
from vtkernels._core import gpu, testing, tune, tuned
from vtkernels._core.op import OPS, Backend
from vtkernels._core.testing import BenchCase
from vtkernels._core.tuned import Entry
from vtkernels.ops.jsd import op as jsd

DEVICE, NAME = torch.device("cuda"), "Fake GPU 9000"


class Plan(NamedTuple):
    block: int
    num_warps: int


DEFAULT = Plan(64, 4)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A package and a user's folder of their own, and a GPU by name."""
    monkeypatch.setattr(gpu, "name", lambda device: NAME)
    monkeypatch.setenv("VTKERNELS_TUNED", str(tmp_path / "user"))
    monkeypatch.setattr(tuned, "packaged", lambda folder, device: tmp_path / "package" / folder / "tuned" / f"{tuned.slug(device)}.json")
    (tmp_path / "package" / "jsd").mkdir(parents=True)
    tuned.forget()
    yield tmp_path
    tuned.forget()


def ask(classes: int = 1000, bits: str = "16", kernel: str = "row") -> Plan:
    return tuned.lookup("jsd", kernel, {"bits": bits, "classes": classes}, DEFAULT, lambda plan: [], DEVICE)


def measured(classes: int, block: int, **parameters) -> Entry:
    return Entry("row", (("bits", "16"), ("classes", classes)), {"block": block} | parameters, 0.5, 1.0)


def keep(*entries: Entry) -> None:
    tuned.write("jsd", NAME, list(entries), {})


def test_without_a_file_the_default_stands(folders):
    assert ask() == DEFAULT


def test_the_nearest_measurement_answers(folders):
    keep(measured(1000, 32), measured(100, 16))
    assert ask(1000) == Plan(32, 4)
    assert ask(1500) == Plan(32, 4)
    assert ask(150) == Plan(16, 4)


@pytest.mark.parametrize("call", [{"classes": 1_000_000}, {"bits": "32"}, {"kernel": "tiled"}])
def test_what_is_far_or_another_build_is_left_alone(folders, call):
    keep(measured(1000, 32))
    assert ask(**call) == DEFAULT


def test_a_key_of_another_version_is_left_alone(folders):
    keep(Entry("row", (("classes", 1000),), {"block": 32}, 0.5, 1.0))
    assert ask() == DEFAULT


def test_a_parameter_that_no_longer_exists_is_left_out(folders):
    keep(measured(1000, 32, lanes=7))
    assert ask() == Plan(32, 4)


def test_other_devices_and_a_switch_leave_files_alone(folders, monkeypatch):
    keep(measured(1000, 32))
    assert tuned.lookup("jsd", "row", {"bits": "16", "classes": 1000}, DEFAULT, lambda plan: [], torch.device("cpu")) == DEFAULT
    monkeypatch.setattr(gpu, "name", lambda device: "Another GPU")
    assert ask() == DEFAULT
    monkeypatch.setattr(gpu, "name", lambda device: NAME)
    assert ask() != DEFAULT
    monkeypatch.setenv("VTKERNELS_TUNED", "0")
    assert ask() == DEFAULT


def test_the_users_entry_wins_and_the_others_stay(folders):
    keep(measured(1000, 32), measured(100, 16))
    personal = tuned.personal("jsd", NAME)
    personal.parent.mkdir(parents=True)
    personal.write_text(json.dumps({"triton": tuned.triton_version(), "entries": [measured(1000, 8)._asdict() | {"key": {"bits": "16", "classes": 1000}}]}))
    tuned.forget()
    assert (ask(1000), ask(100)) == (Plan(8, 4), Plan(16, 4))
    # what is measured now must not hide behind what was measured before
    assert tuned.write("jsd", NAME, [measured(1000, 4)], {}) == personal
    assert ask(1000) == Plan(4, 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"entries": []}',
        '{"triton": "3.6", "entries": [{}]}',
        '{"triton": "3.6", "entries": [{"kernel": "row", "key": [], "parameters": 1}]}',
    ],
)
def test_a_broken_file_warns_and_the_default_stands(folders, caplog, text):
    path = tuned.packaged("jsd", NAME)
    path.parent.mkdir()
    path.write_text(text)
    assert ask() == DEFAULT
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "expected launch parameters as `vtkernels tune` writes them" in caplog.text
    keep(measured(1000, 32))
    assert ask() == Plan(32, 4)


def test_another_triton_is_noted(folders, caplog):
    keep(measured(1000, 32))
    path = tuned.packaged("jsd", NAME)
    path.write_text(path.read_text().replace(f'"triton": "{tuned.triton_version()}"', '"triton": "0.1"'))
    tuned.forget()
    with caplog.at_level(logging.INFO, "vtkernels"):
        assert ask() == Plan(32, 4)
    assert "was measured with Triton 0.1, this is" in caplog.text


def test_a_file_is_written_whole_or_not_at_all(folders, monkeypatch):
    keep(measured(1000, 32))
    path = tuned.packaged("jsd", NAME)
    before = path.read_text()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        keep(measured(1000, 16))
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_package_that_cannot_be_written_to_sends_it_to_the_user(folders, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    path = tuned.write("jsd", NAME, [measured(1000, 32)], {})
    assert path == folders / "user" / "jsd" / "fake-gpu-9000.json"
    assert ask() == Plan(32, 4)


@pytest.fixture
def fake_op(folders, monkeypatch):
    """`jsd_consistency` whose Triton backend runs on a CPU, with plans that are slow, wrong or impossible; and a clock that reads the plan."""
    clock = {"ms": 0.0}
    times = {DEFAULT: 1.0, Plan(32, 4): 0.5, Plan(16, 4): 2.0, Plan(8, 4): 0.1, Plan(4, 4): 0.2}
    reference = OPS["jsd_consistency"].backend("reference")

    def launch(phase):
        def run(call, *rest):
            key = {"bits": str(8 * call.logits.dtype.itemsize), "classes": call.classes}
            plan = tuned.lookup("jsd", phase, key, DEFAULT, lambda plan: list(times), DEVICE)
            if plan == Plan(4, 4):
                raise RuntimeError("out of resources")
            clock["ms"] += times[plan]
            loss, *others = reference.phases[phase](call, *rest) if phase == "forward" else (reference.phases[phase](call, *rest),)
            wrong = 1.5 if plan == Plan(8, 4) else 1.0
            return (loss * wrong, *others) if others else loss * wrong

        return run

    backend = Backend("triton", lambda phase, call: None, {phase: launch(phase) for phase in reference.phases})
    monkeypatch.setitem(OPS["jsd_consistency"]._loaded, "triton", backend)
    # which backend runs a call is remembered there: neither the real ones now, nor the fake one afterwards
    monkeypatch.setattr(jsd, "_KNOWN", {})
    case = next(case for case in testing.cases("jsd_consistency") if case.name == "cifar")
    monkeypatch.setattr(testing, "gpu_cases", lambda op: [BenchCase(case.name, case.why, case.make)])

    def timer(runs):
        found = []
        for run in runs:
            clock["ms"] = 0.0
            run()
            found.append(clock["ms"])
        return found

    return timer


def test_tuning_keeps_the_fastest_of_what_is_right(fake_op):
    said = []
    found = tune.tune("jsd_consistency", torch.device("cpu"), fake_op, said.append)
    entries = {(entry.kernel, dict(entry.key)["bits"]): entry for entry in found["jsd"]}
    assert set(entries) >= {("forward", "16"), ("forward", "32")}
    for entry in entries.values():
        assert entry.parameters == {"block": 32, "num_warps": 4}
        assert entry.milliseconds < entry.default_milliseconds
    assert any("cannot be launched: RuntimeError: out of resources" in line for line in said)
    assert any("gives another output" in line for line in said)
    (path,) = tune.save(torch.device("cpu"), found)
    assert tuned.lookup("jsd", "forward", {"bits": "16", "classes": 10}, DEFAULT, lambda plan: [], DEVICE) == Plan(32, 4)
    facts = json.loads(Path(path).read_text())
    assert facts["device"] == NAME and facts["triton"] == tuned.triton_version() and facts["torch"] == torch.__version__


def test_near_shapes_are_measured_once_and_nothing_after_the_end(fake_op, monkeypatch):
    rows = testing.gpu_cases("jsd_consistency")
    monkeypatch.setattr(testing, "gpu_cases", lambda op: rows * 2)
    calls = []

    def timer(runs):
        calls.append(len(runs))
        return fake_op(runs)

    tune.tune("jsd_consistency", torch.device("cpu"), timer, lambda line: None)
    # of two equal rows, once in each dtype
    assert len(calls) == 2
    said = []
    assert tune.tune("jsd_consistency", torch.device("cpu"), timer, said.append, until=0.0) == {}
    assert len(calls) == 2 and all("no time left" in line for line in said)


def test_a_shape_that_fails_costs_the_others_nothing(fake_op, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = testing.gpu_cases("jsd_consistency")
    monkeypatch.setattr(testing, "gpu_cases", lambda op: [BenchCase("huge", "does not fit", too_large), *rows])
    said = []
    assert tune.tune("jsd_consistency", torch.device("cpu"), fake_op, said.append)["jsd"]
    assert "jsd_consistency, huge, bfloat16: not tuned: OutOfMemoryError: CUDA out of memory" in said


def test_a_gain_within_the_noise_keeps_the_default(fake_op):
    found = tune.tune("jsd_consistency", torch.device("cpu"), lambda runs: [1.0] + [0.99] * (len(runs) - 1), lambda line: None)
    assert {tuple(entry.parameters.values()) for entry in found["jsd"]} == {DEFAULT}


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of a machine without a GPU")
def test_the_command_needs_a_gpu(capsys):
    assert cli.main(["tune", "augmix_loss"]) == 2
    assert "expected a CUDA device" in capsys.readouterr().err


def test_no_file_is_committed_for_a_device_without_a_measurement():
    for folder in dict.fromkeys(op.package.rpartition(".")[2] for op in OPS.values()):
        for path in tuned.packaged(folder, "any").parent.glob("*.json"):
            found = json.loads(path.read_text())
            assert tuned.slug(found["device"]) == path.stem and found["entries"] and found["torch"], path
            assert len(tuned.read(path)) == len(found["entries"])


@pytest.mark.parametrize("op", [op for op in OPS if "triton" in OPS[op].backend_names])
def test_every_op_names_what_gpus_are_tuned_with(op):
    cases = testing.gpu_cases(op)
    assert cases and len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert set(case.elements) == set(OPS[op].phases)


def launchers_questions(op: str) -> list[tuned.Question]:
    """What the op's launchers ask for its cases, on tensors without numbers."""
    from python_tests.gpu.waiting import pretended_device

    found = []
    for case in testing.cases(op):
        inputs = {name: on_the_device(value) for name, value in case.inputs(torch.bfloat16).items()}
        with tuned.questions() as asked, pretended_device():
            (testing.run_case if testing.has_gradients(op) else testing.run_in_place)(op, inputs, "triton")
        found += asked
    return found


def on_the_device(value):
    if isinstance(value, list):
        return [on_the_device(one) for one in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("op", [op for op in OPS if "triton" in OPS[op].backend_names])
def test_every_launcher_asks_and_names_candidates_of_its_own_kind(op):
    pytest.importorskip("triton", reason="what is launched is triton's, which is not installed")
    asked = launchers_questions(op)
    assert {question.folder for question in asked} == {OPS[op].package.rpartition(".")[2]}
    for question in asked:
        candidates = question.candidates(question.default)
        assert len(set(candidates)) > 2 and all(type(one) is type(question.default) for one in candidates)
        # what is measured is written, read and given back as it was
        parameters = json.loads(json.dumps(candidates[-1]._asdict()))
        entry = Entry(question.kernel, question.key, parameters, 1.0, 1.0)
        found = tuned.nearest([entry], question.kernel, question.key)
        assert question.default._replace(**found.parameters) == candidates[-1]
