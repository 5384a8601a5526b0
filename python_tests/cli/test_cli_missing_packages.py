"""A package that is missing is named before anything is computed, with what installs it."""

import sys

import pytest

from vtkernels import cli

pytest.importorskip("tyro")
TRAIN = ["train", "smoke", "--train.epochs", "1", "--schedule.warmup", "0", "--data.fraction", "0.1", "--data.batch-size", "24"]
EVAL = ["eval", "vit_nano_patch4_32", "--data", "digits", "--limit", "4", "--device", "cpu"]
ANALYZE = ["analyze", "throughput", "--models", "vit_nano_patch4_32"]


@pytest.mark.parametrize(
    ("words", "module", "package"),
    [
        *((TRAIN, name, name) for name in ("tyro", "safetensors")),
        *((words, name, name) for words in (EVAL, ANALYZE) for name in ("tyro", "matplotlib")),
        *((words, "sklearn", "scikit-learn") for words in (TRAIN, EVAL)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_it_is_named_before_anything_is_done(words, module, package, monkeypatch, capsys, tmp_path):
    # with the parts of it that other tests have imported
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert f"expected {package} to be installed, got no such package; try pip install 'vtkernels[" in told
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".json", ".csv")]


def test_a_report_does_without_pictures(monkeypatch, capfd, caplog, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main([*TRAIN, "--folder", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Left out: plots: expected matplotlib to be installed" in page and "Resolved recipe" in page
    assert "Traceback" not in capfd.readouterr().err + caplog.text
