"""What an evaluation comes to: tables, evaluation.json, and bars of the corruptions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtkernels.evaluation import corruption, plots
from vtkernels.evaluation._options import EvaluationOptions
from vtkernels.evaluation._sets import CLEAN, corruption_of
from vtkernels.evaluation._table import shown, table

_COLUMNS = ("count", "top1", "top5", "f1", "ece", "rms", "nll")
# what only some sets have, and is told in a table of its own
_MORE = ("negatives", "temperature", "nll_tempered", "ece_tempered", "coverage", "accepted_precision", "accepted_recall", "accepted_f1", "negatives_rejected")


class Summary:
    """Draws on the measures of the sets that are done, in the order of the evaluation."""

    def __init__(self, options: EvaluationOptions, num_classes: int, names: Sequence[str]):
        self.options, self.num_classes, self.names = options, num_classes, names

    def write(self, done: dict[str, dict[str, Any]]) -> None:
        """`evaluation.json`, and `corruptions.png` where there are any."""
        folder = Path(self.options.out)
        folder.mkdir(parents=True, exist_ok=True)
        errors = self._errors(done)
        content = {
            "options": self.options.meaning(),
            "complete": all(name in done for name in self.names),
            "sets": {name: done[name] for name in self._order(done)},
            "corruption": self._corruption(done, errors),
        }
        (folder / "evaluation.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        if errors:
            plots.corruption_plot(errors, self._clean_error(done), folder / "corruptions.png", title=f"{self.options.model} on {self.options.data}")

    def text(self, done: dict[str, dict[str, Any]], *, plain: bool = False) -> str:
        """Tables for people."""
        rows = [(name, *(shown(column, done[name].get(column)) for column in _COLUMNS)) for name in self._order(done) if corruption_of(name) is None]
        parts = [table(f"{self.options.model} on {self.options.data}", ("set", *_COLUMNS), rows, plain=plain)]
        more = [name for name in done.get(CLEAN, {}) if name in _MORE or name.startswith(("auroc_", "aupr_", "fpr95_"))]
        more = [(name, shown(name, done[CLEAN][name])) for name in more]
        unmasked = [(f"{name}: top1 of all classes", shown("top1", done[name]["top1_unmasked"])) for name in self._order(done) if "top1_unmasked" in done[name]]
        if more or unmasked:
            parts.append(table("further measures", ("measure", "value"), more + unmasked, plain=plain))
        errors = self._errors(done)
        if errors:
            parts.append(self._corruption_table(done, errors, plain))
        return "\n\n".join(parts)

    def _corruption_table(self, done: dict[str, dict[str, Any]], errors: dict[str, dict[int, float]], plain: bool) -> str:
        found = self._corruption(done, errors)
        severities = sorted({severity for own in errors.values() for severity in own})
        with_alexnet = bool(found["ce_percent"])
        header = ["top-1 error", *map(str, severities), "mean", *(["CE"] if with_alexnet else [])]
        rows = []
        for name, own in errors.items():
            ce = [shown("ce_percent", found["ce_percent"].get(name))] if with_alexnet else []
            rows.append([name, *(shown("error", own.get(severity)) for severity in severities), shown("error", sum(own.values()) / len(own)), *ce])
        blank = [""] * len(severities)
        if "mean_error" in found:
            rows.append(["mean of the 15", *blank, shown("error", found["mean_error"]), *([shown("ce_percent", found["mce_percent"])] if with_alexnet else [])])
        if "relative_mce_percent" in found:
            rows.append(["relative mCE", *blank, "", shown("ce_percent", found["relative_mce_percent"])])
        return table("corruptions", header, rows, plain=plain)

    def _corruption(self, done: dict[str, dict[str, Any]], errors: dict[str, dict[int, float]]) -> dict[str, Any]:
        """Means over what is complete: a mean of some of the fifteen would look like the whole one."""
        whole = {name: [own[severity] for severity in range(1, 6)] for name, own in errors.items() if len(own) == corruption.SEVERITIES}
        found: dict[str, Any] = {"error": {name: {str(severity): error for severity, error in own.items()} for name, own in errors.items()}}
        of_imagenet, clean = self.num_classes == 1000, self._clean_error(done)
        found["ce_percent"] = {name: corruption.corruption_error(own, name) for name, own in whole.items()} if of_imagenet else {}
        if set(corruption.COUNTED) <= set(whole):
            found["mean_error"] = corruption.mean_error(whole)
            found["mean_accuracy"] = 1 - found["mean_error"]
            if of_imagenet:
                found["mce_percent"] = corruption.mean_corruption_error(whole)
                if clean is not None:
                    found["relative_mce_percent"] = corruption.relative_mean_corruption_error(whole, clean)
        return found

    def _errors(self, done: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
        errors: dict[str, dict[int, float]] = {}
        for set_name in self._order(done):
            found = corruption_of(set_name)
            if found is not None:
                name, severity = found
                errors.setdefault(name, {})[severity] = 1 - done[set_name]["top1"]
        return errors

    def _order(self, done: dict[str, Any]) -> list[str]:
        """Sets of this command first, then those that earlier ones left."""
        return [*(name for name in self.names if name in done), *(name for name in done if name not in self.names)]

    @staticmethod
    def _clean_error(done: dict[str, dict[str, Any]]) -> float | None:
        return 1 - done[CLEAN]["top1"] if CLEAN in done else None
