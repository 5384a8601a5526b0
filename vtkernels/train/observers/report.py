"""The report of a run: one page that needs nothing else, and its plots as files."""

import base64
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtkernels.optim.shards import is_sharded
from vtkernels.train.observers import curves, pictures, words
from vtkernels.train.observers.findings import Findings, attention_or_maps, look
from vtkernels.train.observers.jsonl import read_log
from vtkernels.train.observers.surroundings import surroundings
from vtkernels.train.records import EpochRecord, History, Observer, StepRecord

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer

log = logging.getLogger("vtkernels")

# more than any plot can show, and some 20 MB
MOST_STEPS = 20_000


class Report(Observer):
    """At the end, writes report.html and plots/*.png into the run's folder.

    Curves, what the model confuses, its worst mistakes, what it looks at, where the time went, and all that is needed to run it again. The
    model looks at the validation set once more for that, with the averaged weights where there are some. A part that cannot be made is
    left out, and the page says why: a report must not cost a run.

    Args:
        folder: of the run. A log.jsonl in it tells of steps before the run was taken up again.
        predictions: whether the model is to look at the validation set.
    """

    def __init__(self, folder: Path | str, *, predictions: bool = True):
        self.folder, self.predictions = Path(folder), predictions
        self._forget()

    def on_start(self, trainer: "Trainer") -> None:
        self._forget()
        update = trainer.progress.update
        for line in read_log(self.folder) if update else ():
            if line["kind"] == "step" and line["step"] <= update:
                self._keep(line)

    def on_step(self, record: StepRecord) -> None:
        self._keep(asdict(record))

    def _forget(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self._seen, self._each = 0, 1

    def _keep(self, step: dict[str, Any]) -> None:
        """Of long runs every second record, then every fourth, and so on."""
        if self._seen % self._each == 0:
            self.steps.append(step)
        self._seen += 1
        if len(self.steps) > MOST_STEPS:
            self.steps, self._each = self.steps[::2], 2 * self._each

    def on_end(self, trainer: "Trainer", history: History) -> None:
        try:
            path = self.folder / "report.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.page(trainer, history), encoding="utf-8")
            log.info("report: %s", path)
        except Exception as error:
            log.warning("no report: %s", error, exc_info=True)

    def page(self, trainer: "Trainer", history: History) -> str:
        self._plots, self._trainer, self._history = self.folder / "plots", trainer, history
        self._drawn: dict[str, Path] = {}
        parts = [
            ("Curves", self._curves),
            ("Epochs", self._epochs),
            *self._of_predictions(),
            ("Time", self._time),
            ("Recipe", self._recipe),
            ("Versions", lambda: _pairs(surroundings(trainer.device))),
        ]
        with trainer.ema.applied(trainer.model) if trainer.ema is not None else contextlib.nullcontext():
            sections = [(title, _section(make)) for title, make in parts]
        contents = " · ".join(f'<a href="#{title.replace(" ", "-")}">{title}</a>' for title, _ in sections)
        body = "\n".join(f'<section id="{title.replace(" ", "-")}"><h2>{title}</h2>\n{text}</section>' for title, text in sections)
        name = escape(self.folder.resolve().name)
        return _PAGE.format(title=name, style=_STYLE, summary=self._summary(), contents=contents, body=body)

    def _summary(self) -> str:
        trainer, history = self._trainer, self._history
        monitor, best = trainer.settings.monitor, history.best
        found = (best.ema or best.valid or {}).get(monitor) if best else None
        seconds = sum(sum(record.seconds.values()) for record in history.epochs)
        computing = sum(record.seconds.get("compute", 0.0) + record.seconds.get("data", 0.0) for record in history.epochs)
        images = _images_of(trainer.train_loader) * len(history.epochs)
        params = sum(param.numel() for param in trainer.model.parameters())
        tiles = [("model", type(trainer.model).__name__), ("parameters", f"{params / 1e6:.2f} M")]
        if found is not None:
            tiles = [(f"best {monitor}, epoch {best.epoch}", words.shown(monitor, found)), *tiles]
        tiles += [
            ("epochs", f"{len(history.epochs)} of {trainer.settings.epochs}"),
            ("updates", f"{trainer.progress.update:,}"),
            ("time", words.duration(seconds)),
        ]
        if images and computing:
            tiles.append(("speed in training", words.rate(images / computing)))
        told = f"<p>Stopped early: {escape(history.stopped)}.</p>" if history.stopped else ""
        return "".join(f"<div><b>{escape(value)}</b><span>{escape(title)}</span></div>" for title, value in tiles) + told

    def _curves(self) -> str:
        self._drawn = drawn = curves.draw_curves(self.steps, self._history.epochs, self._plots)
        titles = {
            "loss": "Loss",
            "accuracy": "Accuracy on the validation set",
            "parts": "Parts of the loss",
            "lr": "Learning rate",
            "grad_norm": "Gradient",
            "speed": "Speed",
        }
        if self._trainer.valid_loader is None:
            titles["loss"] = "Loss (there was no validation set)"
        return '<div class="plots">' + "".join(_image(drawn[name], title) for name, title in titles.items() if name in drawn) + "</div>"

    def _epochs(self) -> str:
        records = self._history.epochs
        if not records:
            return "<p>No epoch was completed.</p>"
        columns = {"epoch": [str(record.epoch) + (" (best)" if record.best else "") for record in records]}
        for group in ("train", "valid", "ema"):
            for name in dict.fromkeys(name for record in records for name in (getattr(record, group) or {})):
                values = [(getattr(record, group) or {}).get(name) for record in records]
                columns[f"{group} {name}"] = ["" if value is None else words.shown(name, value) for value in values]
        columns["time"] = [words.duration(sum(record.seconds.values())) for record in records]
        table = _table(list(columns), list(zip(*columns.values(), strict=True)))
        return table if len(records) <= 12 else f"<details><summary>{len(records)} epochs</summary>{table}</details>"

    def _of_predictions(self) -> list[tuple[str, Callable[[], str]]]:
        """Sections that need the model's answers, which are asked for once, when the first of them is made."""
        trainer = self._trainer
        if not self.predictions or trainer.valid_loader is None:
            return []
        if any(is_sharded(param) for param in trainer.model.parameters()):
            return [("Predictions", lambda: "<p>Left out: the weights are spread over processes.</p>")]
        found: list[Findings] = []

        def findings() -> Findings:
            if not found:
                found.append(look(trainer, trainer.valid_loader))
            return found[0]

        makers = {"Confusions": self._confusions, "Worst examples": self._worst, "Attention and features": self._maps}
        return [(title, lambda make=make: make(findings())) for title, make in makers.items()]

    def _confusions(self, findings: Findings) -> str:
        confusion = findings.confusion()
        path = self._plots / "confusion.png"
        told = pictures.draw_confusion(confusion, findings.classes, path)
        hits, sizes = confusion.diagonal(), confusion.sum(1)
        right, whole = hits.sum().item(), sizes.sum().item()
        weights = "averaged weights" if self._trainer.ema is not None else "weights"
        share = "" if self._trainer.world == 1 else " These are the samples of the first process."
        text = f"<p>{right:,} of {whole:,} right ({100 * right / whole:.2f} %), with the {weights} at the end of the run.{share} {escape(told)}</p>"
        recall = [(hits[i].item() / sizes[i].item(), name, sizes[i].item()) for i, name in enumerate(findings.classes) if sizes[i]]
        rows = [(escape(name), f"{100 * share:.1f} %", str(size)) for share, name, size in sorted(recall)[:10]]
        return text + (_image(path, "") if told else "") + "<h3>Hardest classes</h3>" + _table(["class", "right", "samples"], rows)

    def _worst(self, findings: Findings) -> str:
        path = self._plots / "worst.png"
        pictures.draw_examples(findings.worst, findings.classes, path)
        return "<p>The highest losses of the validation set: true class, answer and confidence.</p>" + _image(path, "")

    def _maps(self, findings: Findings) -> str:
        title, maps = attention_or_maps(self._trainer.model, findings.samples)
        path = self._plots / "maps.png"
        pictures.draw_maps(findings.shown, maps, path)
        return f"<p>{escape(title)}. Bright is more; each map has its own scale.</p>" + _image(path, "")

    def _time(self) -> str:
        records: list[EpochRecord] = self._history.epochs
        if "timing" not in self._drawn:
            return "<p>No epoch was completed.</p>"
        names = list(dict.fromkeys(name for record in records for name in record.seconds))
        totals = {name: sum(record.seconds.get(name, 0.0) for record in records) for name in names}
        whole = sum(totals.values()) or 1.0
        rows = [(name, words.duration(seconds), f"{100 * seconds / whole:.1f} %") for name, seconds in totals.items()]
        most = max((step["memory"] for step in self.steps), default=0)
        told = f"<p>Most memory: {words.memory(most)}.</p>" if most else ""
        waiting = "<p>Data is the time that training waited for batches.</p>"
        return _image(self._drawn["timing"], "") + _table(["activity", "time", "share"], rows) + waiting + told

    def _recipe(self) -> str:
        trainer = self._trainer
        groups = trainer.optimizer.param_groups
        tensors, decayed = (sum(len(group["params"]) for group in chosen) for chosen in (groups, [g for g in groups if g.get("weight_decay")]))
        told = {
            "optimizer": f"{type(trainer.optimizer).__name__}, {len(groups)} groups, {decayed} of {tensors} tensors decayed",
            "schedule": repr(trainer.schedule) if trainer.schedule is not None else "none",
            "task": " around ".join(_chain(trainer.task)),
        }
        config = json.dumps(trainer.config, indent=2, default=str)
        settings = json.dumps(asdict(trainer.settings), indent=2, default=str)
        parts = [_pairs(told), f"<h3>Settings of the trainer</h3><pre>{escape(settings)}</pre>"]
        return "".join([*parts, f"<h3>Resolved recipe</h3><pre>{escape(config)}</pre>"] if trainer.config else parts)


def _section(make: Callable[[], str]) -> str:
    try:
        return make()
    # whatever is wrong with one part, the others are worth having
    except Exception as error:
        log.warning("a part of the report is left out: %s", error, exc_info=not isinstance(error, ValueError | ImportError))
        return f"<p>Left out: {escape(str(error) or type(error).__name__)}.</p>"


def _images_of(loader: Any) -> int:
    """Samples of an epoch, of all processes; 0 where the loader does not tell."""
    batches = getattr(loader, "batches", None)
    sampler = getattr(batches, "sampler", None)
    return len(loader) * batches.size * sampler.world if sampler is not None else 0


def _chain(task: Any) -> list[str]:
    names = [type(task).__name__]
    while (task := getattr(task, "inner", None)) is not None:
        names.append(type(task).__name__)
    return names


def _image(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return f'<figure>{caption}<img alt="{escape(title or path.stem)}" src="data:image/png;base64,{data}"></figure>\n'


def _table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    """Of cells that are HTML already."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _pairs(values: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in values.items())
    return f'<table class="pairs">{rows}</table>'


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><div class="tiles">{summary}</div><nav>{contents}</nav>
{body}
</body></html>
"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: .4em } h2 { border-bottom: 1px solid #ddd; margin-top: 2em; padding-bottom: .2em }
nav { margin: 1em 0 } a { color: #0072B2 }
.tiles { display: flex; flex-wrap: wrap; gap: .6em } .tiles div { background: #f3f6f9; border-radius: 8px; padding: .5em .9em }
.tiles b { display: block; font-size: 1.25em } .tiles span { color: #555; font-size: .85em } .tiles p { width: 100%; margin: 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 1em }
figure { margin: .5em 0 } figcaption { font-weight: 600 } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .92em; display: block; overflow-x: auto }
td, th { padding: .2em .8em .2em 0; text-align: left; border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; white-space: nowrap }
.pairs td { white-space: normal; overflow-wrap: anywhere }
pre { background: #f7f7f7; padding: .8em; overflow-x: auto; font-size: .85em; max-height: 40em; overflow-y: auto }
"""
