"""`python -m vtkernels.profile`: the backends of one call, compared."""

import pytest
import torch

from vtkernels import profile
from vtkernels._core import testing


def test_every_backend_is_timed_and_judged_or_says_why_not(capsys):
    arguments = ["window_attention", "--shape", "1x8x8x48", "bias_table=49x2", "--set", "num_heads=2", "window_size=4", "shift_size=2"]
    assert profile.main([*arguments, "--device", "cpu", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert {line.split()[0] for line in told.splitlines() if line} >= {"reference", "triton", "cuda", "cpu"}
    assert "it runs on CUDA devices" in told and "best here: " in told and "TOO LARGE" not in told


def test_an_error_beyond_the_budget_is_told(monkeypatch, capsys):
    judged = testing.judge
    monkeypatch.setattr(testing, "judge", lambda *arguments: [type("Wrong", (), {"share": 3.0})() for _ in judged(*arguments)])
    assert profile.main(["jsd_consistency", "--shape", "6x10", "--device", "cpu", "--rounds", "1"]) == 0
    assert "300% TOO LARGE" in capsys.readouterr().out


def test_classes_are_drawn_within_the_logits():
    inputs = profile._inputs(profile.OPS["augmix_loss"], ["6x4", "target=2"], ["weight=3.0"], torch.float32, torch.device("cpu"))
    assert inputs["target"].dtype == torch.int64 and int(inputs["target"].max()) < 4
    assert inputs["weight"] == 3.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["window_atention", "--shape", "1x4x4x12"], "did you mean window_attention"),
        (["sgd_step_", "--shape", "4"], "in place"),
        (["window_attention", "--shape", "1x4x4x12"], "num_heads=3"),
        (["window_attention"], "window_attention needs qkv, "),
        (["window_attention", "--shape", "1x4x4x12", "--device", "cuda:9"], "sees no CUDA device"),
        (["window_attention", "--shape", "1x4x4x12", "--device", "gpu"], "--device must be cpu or cuda"),
        (["window_attention", "--shape", "1x4xfour"], "8x56x56x288"),
        (["window_attention", "--shape", "1x4x4x12", "bais_table=9x1"], "bias_table"),
        (["window_attention", "--shape", "1x4x4x12", "--set", "num_hedas=2"], "did you mean num_heads"),
        (["window_attention", "--shape", "1x4x4x13", "--set", "num_heads=1", "window_size=4"], "must be 3 * C"),
    ],
)
def test_what_describes_no_call_is_refused(arguments, told, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert profile.main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--threads", "--rounds"])
def test_counts_are_at_least_one(flag, capsys):
    with pytest.raises(SystemExit) as end:
        profile.main(["jsd_consistency", "--shape", "6x10", flag, "0"])
    assert end.value.code == 2
    assert "at least 1, got '0'" in capsys.readouterr().err
