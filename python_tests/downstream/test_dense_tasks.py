"""Training of segmenters and detectors: frozen trunks to the bit, targets that are wrong or empty, assignment by hand, processes."""

import math

import pytest
import torch

import vtkernels as vt
from vtkernels.data import create_dataset, create_loader
from vtkernels.models import Cells, Detector, Segmenter
from vtkernels.train import DetectionTask, SegmentationTask, Settings, Task, Trainer
from vtkernels.train.tasks.detection import BACKGROUND, IGNORED, assign, centerness_of
from vtkernels.train.validation import _dealt

SIZE = 32


def trunk(**options) -> torch.nn.Module:
    # batch normalisation and stochastic depth: what training would change
    return vt.create_model("swin_nano_patch4_window4_32", features_only=True, drop_path=0.5, **options)


def segmentation(**options) -> SegmentationTask:
    return SegmentationTask(Segmenter(trunk(), 9, channels=16, auxiliary=True, **options))


def detection(**options) -> DetectionTask:
    return DetectionTask(Detector(trunk(), 8, channels=16, depth=1, finest=4, extra=1, **options))


def loader(kind: str, train: bool = False, count: int = 12, batch: int = 4):
    dataset = create_dataset("shapes", "train", count=count, size=SIZE, objects=2, task=kind)
    return create_loader(dataset, batch, train=train, statistics=dataset.statistics)


TASKS = {"segmentation": (segmentation, "miou"), "detection": (detection, "map")}
KINDS = pytest.mark.parametrize("kind", TASKS)


@KINDS
def test_a_frozen_trunk_is_the_same_to_the_bit(kind):
    make, monitor = TASKS[kind]
    task = make(frozen=True)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    trainer = Trainer(task, lambda module: torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2), None, loader(kind, True))
    trainer.settings = Settings(epochs=1)
    trainer.fit()
    after = task.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("backbone" in name for name in moved)


def test_a_frozen_trunk_of_batch_norms_is_the_same_to_the_bit():
    name = next(name for name in vt.list_models("resnet*nano*"))
    backbone = vt.create_model(name, features_only=True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    task = SegmentationTask(Segmenter(backbone, 9, channels=16, head="fcn", frozen=True)).train()
    optimizer = torch.optim.SGD([param for param in task.parameters() if param.requires_grad], lr=0.1, weight_decay=0.1)
    for images, targets in loader("segmentation", True):
        task(images, targets, 0.0).loss.backward()
        optimizer.step()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@KINDS
def test_a_training_learns_and_resumes(kind, tmp_path):
    make, monitor = TASKS[kind]

    def trainer(epochs: int) -> Trainer:
        torch.manual_seed(0)
        task = make()
        settings = Settings(epochs=epochs, monitor=monitor)
        optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
        return Trainer(task, optimizer, None, loader(kind, True), loader(kind), settings, folder=tmp_path)

    first = trainer(1).fit()
    assert {monitor, "loss", "recall"} <= first.epochs[-1].valid.keys() and 0 <= first.epochs[-1].valid[monitor] <= 1
    history = trainer(3).resume().fit()
    assert len(history.epochs) == 3 and history.epochs[-1].train["loss"] < first.epochs[0].train["loss"]


def test_masks_that_do_not_count():
    task, images = segmentation(), torch.randn(2, 3, SIZE, SIZE)
    nothing = torch.full((2, SIZE, SIZE), 255, dtype=torch.uint8)
    outcome = task(images, nothing, 0.0)
    outcome.loss.backward()
    assert outcome.loss == 0
    metrics = task.conclude(task.eval().evaluate(images, nothing), {})
    assert math.isnan(metrics["miou"]) and "loss" not in metrics
    # half of the pixels ignored: as if they were not there
    targets = torch.randint(0, 9, (2, SIZE, SIZE))
    logits = task.model(images)
    half = targets.clone()
    half[:, :, SIZE // 2 :] = 255
    torch.testing.assert_close(task._loss(logits, half), torch.nn.functional.cross_entropy(logits[..., : SIZE // 2], targets[..., : SIZE // 2]))


@pytest.mark.parametrize(
    "targets, message",
    [
        (torch.full((2, SIZE, SIZE), 9), r"targets must lie in 0\.\.8, got 9\.\.9; pixels that do not count are 255"),
        (torch.full((2, SIZE, SIZE), -1), r"targets must lie in 0\.\.8"),
        (torch.zeros(2, SIZE, 8, dtype=torch.long), "be maps of classes"),
        (torch.zeros(2, dtype=torch.long), "be maps of classes"),
        (torch.zeros(2, SIZE, SIZE), "be whole numbers"),
        ([{}, {}], "be maps of classes"),
    ],
)
def test_wrong_masks(targets, message):
    for run in (segmentation(), segmentation().evaluate):
        with pytest.raises((ValueError, TypeError), match=message):
            run(torch.randn(2, 3, SIZE, SIZE), targets)


def objects(boxes: list[list[float]], labels: list[int] | None = None, **marks: list[bool]) -> dict[str, torch.Tensor]:
    labels = [0] * len(boxes) if labels is None else labels
    made = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
    return made | {name: torch.tensor(mark) for name, mark in marks.items()}


def test_images_without_objects():
    task, images = detection(), torch.randn(2, 3, SIZE, SIZE)
    outcome = task(images, [objects([]), objects([])], 0.0)
    outcome.loss.backward()
    assert outcome.loss.isfinite() and outcome.logs["boxes"] == 0 == outcome.logs["centerness"]
    assert [name for name, param in task.named_parameters() if param.grad is None] == []
    sums = task.eval().evaluate(images, [objects([]), objects([])])
    metrics = task.conclude({"loss": (sums["loss"][0].detach(), 2)}, {"objects": sums["objects"]})
    assert math.isnan(metrics["map"]) and metrics["loss"] == pytest.approx(outcome.loss.item(), rel=0.2)


def test_boxes_may_reach_beyond_the_image():
    assert detection()(torch.randn(1, 3, SIZE, SIZE), [objects([[-5.0, -5.0, 20.0, 50.0]])], 0.0).loss.isfinite()


@pytest.mark.parametrize(
    "target, message",
    [
        (objects([[1.0, 1.0, 5.0, 5.0]], [8]), r"labels of image 1 must lie in 0\.\.7"),
        (objects([[1.0, 1.0, 5.0, 5.0]], [-1]), r"labels of image 1 must lie in 0\.\.7"),
        (objects([[5.0, 5.0, 5.0, 9.0]]), "x1 > x0 and y1 > y0"),
        (objects([[5.0, 5.0, float("nan"), 9.0]]), "x1 > x0 and y1 > y0"),
        (objects([[40.0, 5.0, 50.0, 9.0]]), "lie in the image of 32 x 32 pixels.*were they resized"),
        (objects([[-9.0, 5.0, -1.0, 9.0]]), "lie in the image"),
        ({"boxes": torch.zeros(2, 4), "labels": torch.zeros(1, dtype=torch.long)}, r"shape \[1, 4\]"),
        ({"labels": torch.zeros(1)}, "dictionaries with boxes and labels"),
    ],
)
def test_wrong_boxes(target, message):
    with pytest.raises(ValueError, match=message):
        detection()(torch.randn(2, 3, SIZE, SIZE), [objects([]), target], 0.0)
    with pytest.raises(ValueError, match="list of 2 dictionaries"):
        detection()(torch.randn(2, 3, SIZE, SIZE), torch.zeros(2, 5), 0.0)


def grid(stride: int, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    steps = (torch.arange(size // stride) + 0.5) * stride
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1), torch.full((x.numel(),), float(stride))


def test_assignment_by_hand():
    (fine, strides), (coarse, wide) = grid(2), grid(4)
    centers, strides = torch.cat([fine, coarse]), torch.cat([strides, wide])
    # cells of 2 pixels learn what is at most 16 pixels away, within 3 pixels of the middle; those of 4 the rest, within 6
    target = objects([[4.0, 4.0, 12.0, 12.0], [4.0, 4.0, 30.0, 30.0]], [3, 5])
    labels, distances = assign(centers, strides, target)

    def learning(label: int, stride: int) -> set[tuple[float, float]]:
        return {tuple(center) for center in centers[(labels == label) & (strides == stride)].tolist()}

    assert learning(3, 2) == {(x, y) for x in (7.0, 9.0) for y in (7.0, 9.0)} and learning(3, 4) == set()
    assert learning(5, 2) == {(x, y) for x in (15.0, 17.0, 19.0) for y in (15.0, 17.0, 19.0)}
    assert learning(5, 4) == {(x, y) for x in (14.0, 18.0, 22.0) for y in (14.0, 18.0, 22.0) if 22.0 in (x, y)}
    for label, box in zip((3, 5), target["boxes"], strict=True):
        chosen = labels == label
        back = torch.cat([centers[chosen] - distances[chosen][:, :2], centers[chosen] + distances[chosen][:, 2:]], 1)
        torch.testing.assert_close(back, box.expand_as(back))
    crowded = objects([[4.0, 4.0, 12.0, 12.0], [0.0, 0.0, 20.0, 20.0]], [3, 5], crowd=[False, True])
    labels, _ = assign(centers, strides, crowded)
    inside = ((centers > 0) & (centers < 20)).all(dim=1)
    assert (labels[inside & (labels != 3)] == IGNORED).all() and (labels[~inside] == BACKGROUND).all() and (labels == 3).any()


def test_centerness():
    sides = torch.tensor([[4.0, 4.0, 4.0, 4.0], [1.0, 2.0, 4.0, 2.0], [1.0, 1.0, 3.0, 3.0]])
    torch.testing.assert_close(centerness_of(sides), torch.tensor([1.0, 0.5, 1 / 3]))


def test_losses_of_a_perfect_answer():
    centers, strides = grid(4)
    target = objects([[4.0, 4.0, 20.0, 20.0]], [2])
    labels, distances = assign(centers, strides, target)
    logits = torch.full((1, len(centers), 8), -20.0)
    logits[0, labels == 2, 2] = 20.0
    cells = Cells(logits, distances.clamp(min=1e-3)[None], torch.zeros(1, len(centers)), centers, strides)
    losses = detection().losses(cells, [target])
    assert losses["classes"] < 1e-6 and losses["boxes"] < 1e-6 and losses["centerness"] > 0


def test_samples_come_back_in_the_order_of_the_set():
    assert _dealt([[0, 3, 6], [1, 4], [2, 5]]) == list(range(7)) and _dealt([]) == [] and _dealt([[None], []]) == [None]


def test_a_task_may_conclude_from_tables_and_lists():
    class Counting(Task):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(1, 1)

        def evaluate(self, images, targets):
            return {"table": (torch.eye(2) * len(images), len(images)), "seen": targets.tolist(), "mean": (images.sum(), len(images))}

        def conclude(self, totals, records):
            table, count = totals.pop("table")
            return super().conclude(totals, records) | {
                "count": float(count),
                "corner": table[1, 1].item(),
                "in order": float(records["seen"] == list(range(5))),
            }

    from vtkernels.train import validate
    from vtkernels.train.precision import Precision

    device = torch.device("cpu")
    batches = [(torch.ones(3, 1), torch.arange(3)), (torch.zeros(2, 1), torch.arange(3, 5))]
    assert validate(Counting(), batches, Precision("float32", device), device) == {"mean": 0.6, "count": 5.0, "corner": 5.0, "in order": 1.0}
