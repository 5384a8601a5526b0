"""The command line tells the truth: also when a backend is wrong, or missing."""

import pytest
import torch

import vtkernels
from vtkernels import cli
from vtkernels._core import native, testing
from vtkernels._core.op import OPS, Backend

OP = "window_attention"


@pytest.fixture
def one_case(monkeypatch):
    case = next(case for case in testing.cases(OP) if case.name == "window_4")
    monkeypatch.setattr(testing, "cases", lambda op: [case] if op == OP else [])


def replace_cpu_backend(monkeypatch, why_not, spoil=lambda out: out):
    reference = OPS[OP].backend("reference")

    def forward(call):
        out, statistics = reference.phases["forward"](call)
        return spoil(out), statistics

    phases = {"forward": forward, "backward": reference.phases["backward"]}
    monkeypatch.setitem(OPS[OP]._loaded, "cpu", Backend("cpu", lambda phase, call: why_not, phases))


def test_check_passes_a_right_backend(one_case, monkeypatch, capsys):
    replace_cpu_backend(monkeypatch, None)
    assert cli.main(["check", OP]) == 0
    # the output and the gradients of qkv and table, in three dtypes
    assert f"{OP} cpu on cpu: 9 of 9 outputs and gradients within the error budget" in capsys.readouterr().out


def test_check_finds_a_wrong_backend(one_case, monkeypatch, capsys):
    replace_cpu_backend(monkeypatch, None, spoil=lambda out: out * 1.1)
    assert cli.main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "6 of 9 outputs and gradients" in printed
    assert printed.count("FAILED") == 3
    assert "case window_4, float32: output is off by" in printed


@pytest.mark.parametrize(("factor", "failures"), [(1.0, 0), (1.1, 3)], ids=["right", "wrong"])
def test_check_judges_what_an_op_writes(factor, failures, monkeypatch, capsys):
    def restore(call):
        for param, backup in zip(call.params, call.backups, strict=True):
            param.copy_(backup * factor)

    monkeypatch.setitem(OPS["sam_restore_"]._loaded, "cpu", Backend("cpu", lambda phase, call: None, {"forward": restore}))
    monkeypatch.setattr(testing, "cases", lambda op, cases=testing.cases: [case for case in cases(op) if case.name == "scalar"])
    assert cli.main(["check", "sam_restore_"]) == (failures > 0)
    printed = capsys.readouterr().out
    assert f"sam_restore_ cpu on cpu: {3 - failures} of 3 results within the error budget" in printed
    assert printed.count("FAILED sam_restore_, backend cpu, case scalar") == printed.count("params[0] is off by") == failures


def test_check_and_info_tell_why_a_backend_cannot_run(one_case, monkeypatch, capsys):
    replace_cpu_backend(monkeypatch, "it is being repaired")
    assert cli.main(["check"]) == 0
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out.count("it is being repaired") == 2
    assert vtkernels.backends()[OP]["cpu"] == "it is being repaired"


def test_explain_names_the_choice_and_the_reasons(monkeypatch):
    arguments = OPS[OP].example("cpu")
    monkeypatch.delenv("VTKERNELS_BACKEND", raising=False)
    replace_cpu_backend(monkeypatch, None)
    assert vtkernels.explain(OP, **arguments).chosen("forward") == "cpu"
    replace_cpu_backend(monkeypatch, "it is being repaired")
    found = vtkernels.explain(OP, **arguments, backend="cpu")
    assert found.chosen("backward") is None
    assert "forward: refused" in str(found)
    assert "it is being repaired" in str(found)
    monkeypatch.setenv("VTKERNELS_BACKEND", "reference")
    assert vtkernels.explain(OP, **arguments).chosen() == "reference"
    with pytest.raises(ValueError, match="op must be one of .*window_attention.*, got 'attention'"):
        vtkernels.explain("attention")


def test_a_default_that_only_other_ops_have_leaves_the_choice(monkeypatch):
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    monkeypatch.setenv("VTKERNELS_BACKEND", "triton")
    assert torch.equal(vtkernels.linear(x, weight), vtkernels.linear(x, weight, backend="auto"))
    assert vtkernels.explain("linear", x, weight).chosen() in ("torch", "cpu", "reference")
    with pytest.raises(ValueError, match="linear: backend must be one of .*, got 'triton'"):
        vtkernels.linear(x, weight, backend="triton")
    with pytest.raises(RuntimeError, match="'triton' was asked for but cannot run this call"):
        vtkernels.window_attention(torch.randn(1, 4, 4, 24), torch.zeros(9, 1), num_heads=1, window_size=2)


def test_a_misspelt_environment_is_named(monkeypatch):
    monkeypatch.setenv("VTKERNELS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="got 'gpu' from VTKERNELS_BACKEND"):
        vtkernels.explain(OP, **OPS[OP].example("cpu"))
    assert vtkernels.backends()[OP]["reference"] is None
    monkeypatch.setenv("VTKERNELS_ISA", "avx")
    assert "VTKERNELS_ISA must be one of portable, avx2, avx512, avx512_bf16, got 'avx'" in native.why_missing.__wrapped__()
