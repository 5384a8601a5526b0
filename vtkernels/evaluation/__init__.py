"""Evaluation of classifiers, segmenters and detectors: measures in float64, whole sets, and the command that runs all of it on a checkpoint."""

import importlib
from typing import Any

# name -> module, loaded when it is asked for
_LAZY_NAMES = {
    "ClassScores": "classification",
    "ClassThresholds": "thresholds",
    "DetectionScores": "detection",
    "EvaluationOptions": "command",
    "Predictions": "predictions",
    "Reliability": "calibration",
    "Result": "result",
    "RiskCoverage": "thresholds",
    "SegmentationScores": "segmentation",
    "adaptive_calibration_error": "calibration",
    "adaptive_reliability": "calibration",
    "auroc": "open_set",
    "aurra": "calibration",
    "average_precision": "open_set",
    "brier_score": "calibration",
    "calibration_error": "calibration",
    "certainty": "open_set",
    "choose_thresholds": "thresholds",
    "class_logits": "imagenet",
    "class_scores": "classification",
    "coco_average_precision": "detection",
    "confidences": "calibration",
    "confusion_matrix": "classification",
    "corruption_error": "corruption",
    "count_classes": "classification",
    "energy": "open_set",
    "entropy": "open_set",
    "evaluate": "result",
    "fit_temperature": "calibration",
    "fpr_at_recall": "open_set",
    "mean_corruption_error": "corruption",
    "mean_error": "corruption",
    "negative_log_likelihood": "calibration",
    "open_set_scores": "open_set",
    "pixel_confusion": "segmentation",
    "predict": "predictions",
    "predicted_classes": "classification",
    "real_accuracy": "imagenet",
    "relative_corruption_error": "corruption",
    "relative_mean_corruption_error": "corruption",
    "reliability": "calibration",
    "risk_coverage": "thresholds",
    "score": "result",
    "segmentation_scores": "segmentation",
    "soft_f1": "calibration",
    "subset_accuracy": "imagenet",
    "target_ranks": "classification",
    "top_k_accuracy": "classification",
    "top_k_correct": "classification",
    "voc_average_precision": "detection",
}
_LAZY = (
    "calibration",
    "classification",
    "command",
    "corruption",
    "detection",
    "imagenet",
    "open_set",
    "plots",
    "predictions",
    "result",
    "segmentation",
    "thresholds",
)

__all__ = [*sorted(_LAZY_NAMES), *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"vtkernels.evaluation.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f"vtkernels.evaluation.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module 'vtkernels.evaluation' has no attribute {name!r}")
