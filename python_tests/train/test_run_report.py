"""The page at the end of a run: complete, self-contained, and made whatever the model and the data are."""

import base64
import io
import json
import logging
import re

import pytest
import torch
from observed_runs import Bars, small_net, trainer_of
from torch import nn

import vtkernels as vt
from vtkernels.data import create_loader
from vtkernels.data.datasets._base import IMAGENET_STATISTICS
from vtkernels.data.loader import normalised
from vtkernels.train.observers import JsonLines, Report
from vtkernels.train.observers.curves import MOST_POINTS, draw_curves, thinned
from vtkernels.train.observers.findings import Example, as_pictures, attention_or_maps, look
from vtkernels.train.observers.pictures import draw_confusion, draw_examples, draw_maps
from vtkernels.train.observers.surroundings import surroundings
from vtkernels.train.records import EpochRecord, StepRecord

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def is_drawn(source) -> bool:
    """Whether there is more on a picture than paper."""
    with Image.open(source) as image:
        darkness = 255 - torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8).float()
    return (darkness > 40).float().mean() > 0.005


def longest_edge(path) -> int:
    with Image.open(path) as image:
        return max(image.size)


def sections(page: str) -> dict[str, str]:
    return dict(re.findall(r'<section id="(.*?)">(.*?)</section>', page, flags=re.DOTALL))


def test_a_page_of_its_own(tmp_path):
    folder = tmp_path / "run"
    trainer_of(folder, [JsonLines(folder), Report(folder)], ema_decay=0.5, clip_norm=1.0, config={"model": {"name": "<resnet8>"}}).fit()
    page = (folder / "report.html").read_text()
    # nothing is fetched from anywhere
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "url(" not in page
    found = sections(page)
    assert list(found) == ["Curves", "Epochs", "Confusions", "Worst-examples", "Attention-and-features", "Time", "Recipe", "Versions"]
    assert not any("Left out" in text for text in found.values())
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == len(list((folder / "plots").glob("*.png"))) == 9
    assert all(is_drawn(io.BytesIO(base64.b64decode(picture))) for picture in pictures)
    assert all(is_drawn(path) for path in (folder / "plots").glob("*.png"))
    assert "&lt;b&gt;middle&lt;/b&gt;" in found["Confusions"]
    assert "<b>middle" not in page
    assert "&lt;resnet8&gt;" in found["Recipe"]
    assert torch.__version__ in found["Versions"]
    assert vt.__version__ in found["Versions"]
    assert "Stopped early" not in page


def test_it_goes_on_from_the_log(tmp_path):
    lines = [{"kind": "step", "step": n, "epoch": n / 3, "loss": n, "memory": 7} for n in range(1, 9)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report, trainer = Report(tmp_path), trainer_of(None, [])
    trainer.progress.update = 5
    log = JsonLines(tmp_path)
    log.on_start(trainer)
    report.on_start(trainer)
    log.close()
    assert [step["step"] for step in report.steps] == [1, 2, 3, 4, 5]


def test_without_a_validation_set(tmp_path):
    trainer_of(tmp_path, [Report(tmp_path)], valid=False).fit()
    found = sections((tmp_path / "report.html").read_text())
    assert list(found) == ["Curves", "Epochs", "Time", "Recipe", "Versions"]
    assert "there was no validation set" in found["Curves"]


def test_what_cannot_be_made_is_left_out_with_the_reason(tmp_path, caplog):
    torch.manual_seed(0)
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(16 * 12, 3))
    trainer_of(tmp_path, [Report(tmp_path)], model=foreign, epochs=1).fit()
    found = sections((tmp_path / "report.html").read_text())
    assert found["Attention-and-features"].count("Left out: Sequential is no model of vtkernels.create_model.") == 1
    assert [name for name, text in found.items() if "Left out" in text] == ["Attention-and-features"]
    assert "a part of the report is left out" in caplog.text


def test_a_report_must_not_cost_the_run(tmp_path, caplog):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "vtkernels"):
        history = trainer_of(None, [Report(tmp_path / "taken")], epochs=1).fit()
    assert len(history.epochs) == 1
    assert "no report" in caplog.text


def test_averaged_weights_are_looked_at_and_put_back(tmp_path):
    trainer = trainer_of(None, [], ema_decay=0.5, epochs=1)
    trainer.fit()
    for average in trainer.ema.averages.values():
        average.zero_()
    before = [param.clone() for param in trainer.model.parameters()]
    page = Report(tmp_path).page(trainer, trainer.history)
    # weights that are all zero take everything for the first class
    assert "8 of 24 right (33.33 %)" in page
    assert all(map(torch.equal, before, trainer.model.parameters()))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_findings(channels):
    data = Bars(20, channels=channels)
    trainer = trainer_of(None, [], data=data, model=small_net(channels=channels))
    findings = look(trainer, create_loader(data, 6), num_worst=7)
    images, labels = (torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*(data[i] for i in range(20)), strict=True))
    with torch.no_grad():
        logits = trainer.model.eval()(images)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(findings.labels, labels)
    assert torch.equal(findings.predicted, logits.argmax(1))
    torch.testing.assert_close(torch.tensor([example.loss for example in findings.worst]), losses.sort(descending=True).values[:7])
    confusion = findings.confusion()
    assert confusion.sum() == 20
    assert confusion[1, logits.argmax(1)[1]] >= 1
    # of the first batch, each class before any class again
    assert tuple(findings.samples.shape[:2]) == (5, channels)
    assert torch.equal(findings.samples[:3], images[:3])


def test_a_loss_that_is_no_number_is_the_worst(tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :3].clone()
            logits[1] = float("nan")
            return logits

    trainer = trainer_of(None, [], model=nn.Sequential(Broken(), nn.Linear(3, 3)))
    findings = look(trainer, create_loader(Bars(6), 6), num_worst=3)
    assert findings.worst[0].loss != findings.worst[0].loss
    draw_examples(findings.worst, findings.classes, tmp_path / "worst.png")
    assert is_drawn(tmp_path / "worst.png")


def test_what_has_no_classes_is_refused():
    with pytest.raises(ValueError, match="the model answers with shape .*, which are no logits"):
        look(trainer_of(None, [], model=nn.Conv2d(1, 1, 1)), create_loader(Bars(6), 6))
    with pytest.raises(ValueError, match="the validation set is empty"):
        look(trainer_of(None, []), [])


def test_soft_targets_count_by_their_largest():
    batches = [(torch.rand(4, 1, 16, 12), torch.eye(3)[[2, 0, 1, 1]])]
    assert look(trainer_of(None, []), batches).labels.tolist() == [2, 0, 1, 1]
    several = [(images, targets.bool()) for images, targets in batches]
    assert look(trainer_of(None, []), several).labels.tolist() == [2, 0, 1, 1]


def test_images_of_no_class_are_left_out():
    batches = [(torch.rand(2, 1, 16, 12), torch.tensor([-1, -1])), (torch.rand(3, 1, 16, 12), torch.tensor([-1, 2, 0]))]
    findings = look(trainer_of(None, []), batches)
    assert findings.labels.tolist() == [2, 0]
    assert len(findings.samples) == len(findings.worst) == 2


def test_pictures_show_the_pixels():
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    torch.testing.assert_close(as_pictures(normalised(pixels, IMAGENET_STATISTICS), IMAGENET_STATISTICS), pixels / 255)
    stretched = as_pictures(torch.tensor([-3.0, 1.0, 5.0, 5.0]).reshape(1, 1, 2, 2))
    assert stretched.flatten().tolist() == [0.0, 0.5, 1.0, 1.0]
    assert as_pictures(torch.full((1, 1, 2, 2), 3.0)).flatten().tolist() == [0.0] * 4


TINY = {"depth": 2, "width": 16, "heads": 2, "patch_size": 4, "img_size": (16, 24), "num_classes": 3}


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [
        ("deit_tiny_patch16_224", TINY, [(4, 6)] * 2),
        ("cait_xxs24_224", TINY, [(4, 6)] * 2),
        ("swin_nano_patch4_window4_32", {"depths": (1, 1), "width": 8, "heads": (1, 2)}, [(4, 6), (2, 3)]),
        ("resnet8_nano", {}, None),
        ("allconv", {}, None),
        ("mixer_b16_224", {"depth": 1, "width": 16, "patch_size": 4, "img_size": (16, 24)}, None),
    ],
)
def test_what_models_look_at(name, options, shapes, tmp_path):
    model, images = vt.create_model(name, **options), torch.rand(2, 3, 16, 24)
    title, maps = attention_or_maps(model, images)
    assert ("class token" in title) == bool(model.prefix_tokens)
    assert all(values.shape[0] == 2 and values.dim() == 3 and values.isfinite().all() for values in maps.values())
    if shapes is not None:
        assert [tuple(values.shape[1:]) for values in maps.values()] == shapes
    if model.prefix_tokens:
        # shares of the attention that the patches get
        assert all(0 < values.sum() <= 2 * (1 + 1e-4) for values in maps.values())
    draw_maps(images, maps, tmp_path / "maps.png")
    assert is_drawn(tmp_path / "maps.png")


@pytest.mark.parametrize("count", [2, 12, 40, 1000])
def test_confusions_of_few_and_many_classes(count, tmp_path):
    confusion = torch.eye(count, dtype=torch.int64) * 50
    confusion[0, 1], confusion[1, 0] = 30, 7
    told = draw_confusion(confusion, [f"a class with the number {i}" for i in range(count)], tmp_path / "confusion.png")
    assert is_drawn(tmp_path / "confusion.png")
    assert ("the 2 most frequent confusions" in told) == (count == 1000)
    assert longest_edge(tmp_path / "confusion.png") < 3000


def test_many_classes_without_a_mistake(tmp_path):
    assert draw_confusion(torch.eye(50, dtype=torch.int64), [str(i) for i in range(50)], tmp_path / "none.png") == ""
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 90), (3, 90, 20)])
def test_examples_of_any_shape(shape, tmp_path):
    draw_examples([Example(torch.rand(shape), 0, 1, 0.9, 3.2)] * 6, ["a very long name of a class indeed", "b"], tmp_path / "worst.png")
    assert is_drawn(tmp_path / "worst.png")
    assert longest_edge(tmp_path / "worst.png") < 3000


def test_curves_need_no_complete_records(tmp_path):
    assert draw_curves([], [], tmp_path) == {}
    steps = [{"epoch": 0.5, "loss": float("nan"), "lr": 0.0}, {"epoch": 1.0, "loss": 2.0, "lr": None, "logs": {"drloc": 0.2}}]
    epochs = [EpochRecord(epoch=1, step=2, train={"loss": float("inf")}, valid={"loss": 1.0, "top1": 0.5}, seconds={"compute": 1.0})]
    assert set(draw_curves(steps, epochs, tmp_path)) == {"loss", "accuracy", "lr", "parts", "timing"}


def test_long_runs_are_thinned():
    points = [(float(i), float(i % 2)) for i in range(100_001)]
    fewer = thinned(points)
    assert len(fewer) <= MOST_POINTS
    assert sum(y for _, y in fewer) / len(fewer) == pytest.approx(0.5, abs=1e-2)
    assert thinned(points[:7]) == points[:7]
    assert thinned([]) == []


def test_of_long_runs_some_steps_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("vtkernels.train.observers.report.MOST_STEPS", 10)
    report = Report(tmp_path)
    for step in range(100):
        report.on_step(StepRecord(step=step, epoch=step / 10, loss=1.0, lr=0.1, images_per_second=1.0, memory=1))
    kept = [step["step"] for step in report.steps]
    assert kept == list(range(0, 100, 16))


def test_surroundings():
    found = surroundings(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert "threads" in found["device"]
    assert all(isinstance(value, str) and value for value in found.values())
