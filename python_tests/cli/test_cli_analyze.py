"""`vtkernels analyze`: every analysis can be asked for, and keeps what it finds."""

import json

import pytest

from vtkernels.analysis import ANALYSES
from vtkernels.cli import main

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def test_a_result_is_told_and_kept(tmp_path, capsys):
    assert main(["analyze", "ntk", "vit_nano_patch4_32", "--samples", "4", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "condition number" in capsys.readouterr().out
    kept = {path.suffix for path in tmp_path.rglob("*")}
    assert {".png", ".json"} <= kept
    assert all(json.loads(path.read_text()) for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_tells_its_options(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", name.replace("_", "-"), "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--out" in told and ("--model STR" not in told or f"vtkernels analyze {name} MODEL" in told)


def test_without_a_name_all_are_told(capsys):
    assert main(["analyze"]) == 2
    assert set(ANALYSES) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sharpnes"], "did you mean sharpness?"),
        (["ntk", "vit_nano_patch4"], "vit_nano_patch4_32"),
        (["ntk", "runs/nowhere"], "got runs/nowhere; there is no such folder"),
        (["attention", "resnet_nano", "--samples", "4"], "attention"),
    ],
)
def test_what_cannot_be_looked_at_is_told(arguments, told, tmp_path, capsys):
    assert main(["analyze", *arguments, *(["--out", str(tmp_path)] if len(arguments) > 1 else [])]) == 2
    assert told in capsys.readouterr().err


FAMILIES = ("swin_nano_patch4_window4_32", "cait_nano_patch4_32", "resnet_nano", "t2t_vit_nano_32", "vitae_nano_32", "mixer_nano4_32")
SMALL = {
    "landscape": ["--samples", "4", "--points", "3", "--line-points", "3", "--other", "{}"],
    "ntk": ["--samples", "2"],
    "sharpness": ["--samples", "4", "--lanczos-steps", "2", "--power-steps", "1", "--trace-samples", "1", "--draws", "1"],
    "sparsity": ["--samples", "8", "--shares", "0", "0.5"],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SMALL)
def test_every_family_can_be_looked_at(name, family, tmp_path):
    arguments = [one.format(family) for one in SMALL[name]]
    assert main(["analyze", name, family, *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / f"{name}.json").read_text())["complete"] and (tmp_path / f"{name}.png").is_file()


def test_an_interruption_with_nothing_to_keep_is_told(monkeypatch, tmp_path, capsys):
    def run(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vtkernels.analysis.ntk.run", run)
    assert main(["analyze", "ntk", "vit_nano_patch4_32", "--out", str(tmp_path)]) == 130
    assert "before there was anything to keep" in capsys.readouterr().err
