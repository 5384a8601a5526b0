"""Results: every measure in its place, as table, JSON and plot."""

import json

import pytest
import torch

from vtkernels import evaluation as ev
from vtkernels.evaluation import _table


def predictions(count=60, classes=7):
    logits, targets = torch.randn(count, classes), torch.arange(count) % classes
    logits[torch.arange(count), targets] += 2
    return ev.Predictions(logits, targets)


def test_measures_are_those_of_the_functions():
    found = predictions()
    metrics = ev.score(found).metrics
    confidence, correct = ev.confidences(found.logits), ev.top_k_correct(found.logits, found.targets)
    assert metrics["count"] == 60 and metrics["top1"] == ev.top_k_accuracy(found.logits, found.targets)
    assert metrics["top5"] == ev.top_k_accuracy(found.logits, found.targets, 5)
    assert metrics["ece"] == ev.calibration_error(confidence, correct)
    assert metrics["rms"] == ev.calibration_error(confidence, correct, "rms")
    assert metrics["nll"] == ev.negative_log_likelihood(found.logits, found.targets)
    assert metrics["f1_micro"] == pytest.approx(metrics["top1"], abs=1e-12)
    assert "without_answer" not in metrics and "auroc_energy" not in metrics


def test_a_broken_model_is_measured_and_not_hidden():
    found = predictions()
    found.logits[:10] = float("nan")
    metrics = ev.score(found).metrics
    assert metrics["without_answer"] == 10
    assert metrics["top1"] == pytest.approx(ev.top_k_correct(found.logits[10:], found.targets[10:]).sum().item() / 60, abs=1e-12)
    assert metrics["nll"] == pytest.approx(ev.negative_log_likelihood(found.logits[10:], found.targets[10:]), abs=1e-12)
    found.logits[:] = float("nan")
    result = ev.score(found)
    assert result.metrics["top1"] == result.metrics["f1"] == 0 and "ece" not in result.metrics
    json.dumps(result.as_dict(), allow_nan=False)


def test_images_of_no_class_are_measured_apart():
    found, targets = predictions(), torch.full((20,), -1)
    everything = ev.Predictions(torch.cat([found.logits, torch.randn(20, 7) / 10]), torch.cat([found.targets, targets]))
    thresholds = ev.ClassThresholds((0.5,) * 7)
    result = ev.score(everything, thresholds=thresholds)
    assert result.metrics["count"] == 60 and result.metrics["negatives"] == 20
    assert result.metrics["top1"] == ev.score(found).metrics["top1"] and result.confusion.sum() == 60
    assert result.metrics["auroc_energy"] > 0.9
    assert result.metrics["negatives_rejected"] == 1
    kept = (ev.confidences(found.logits) >= 0.5).sum().item()
    assert result.metrics["coverage"] == pytest.approx(kept / 80, abs=1e-12)


def test_imagenet_ids_mask_and_the_unmasked_accuracy_stands_beside():
    found = predictions(classes=7)
    ids = [6, 2, 4]
    targets = torch.arange(60) % 3
    result = ev.score(ev.Predictions(found.logits, targets), ids=ids)
    assert result.metrics["top1"] == ev.subset_accuracy(found.logits, targets, ids)
    assert result.metrics["top1_unmasked"] == ev.subset_accuracy(found.logits, targets, ids, masked=False) < result.metrics["top1"]


def test_tables_and_json(tmp_path):
    result = ev.score(predictions(), name="a set", classes=[f"class {number}" for number in range(7)])
    for plain in (False, True):
        text = result.table(plain=plain)
        assert "a set" in text and "top1" in text and f"{100 * result.metrics['top1']:.2f} %" in text
        assert all(f"class {number}" in result.table(per_class=True, plain=plain) for number in range(7))
    assert _table.table("t", ("a", "b"), [("x", "1"), ("long", "22")], plain=True) == "t\na      b\n----  --\nx      1\nlong  22"
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["metrics"] == pytest.approx(result.metrics)
    assert sum(map(sum, content["confusion"])) == 60 and content["per_class"][3]["class"] == "class 3"
    several = ev.score(ev.Predictions(torch.randn(5, 3), torch.ones(5, 3, dtype=torch.bool)))
    assert several.metrics == {"count": 5, "top1": 1.0} and several.as_dict()["metrics"]["top1"] == 1
    with pytest.raises(ValueError, match="several classes"):
        several.table(per_class=True)


def test_plots_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    from vtkernels.evaluation import plots

    paths = ev.score(predictions(), name="seven").save(tmp_path)
    paths += [ev.score(predictions(300, 120)).plot(tmp_path / "many")[0]]
    errors = {"fog": {1: 0.1, 3: 0.4}, "snow": {2: 0.0}}
    paths += [plots.corruption_plot(errors, 0.05, tmp_path / "bars.png"), plots.corruption_plot(errors, None, tmp_path / "unclean.png")]
    for path in paths:
        if path.suffix == ".png":
            picture = image.open(path).convert("L")
            assert min(picture.size) > 300 and len(set(picture.resize((64, 64)).tobytes())) > 10
    assert {path.name for path in paths} >= {"result.json", "confusion.png", "reliability.png"}
