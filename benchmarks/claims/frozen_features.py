"""Are frozen features of a trained model worth more to a segmentation head than those of random weights?

    python benchmarks/claims/frozen_features.py --out benchmarks/results/<device>/claims

For each seed a classifier learns the shapes. Then the same small head is trained on the frozen maps of that model, and on those of the same model with
the weights it began from; all else is equal. Larger models than the default take `--model`, `--size` and more `--epochs`.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import vtkernels as vt
from vtkernels.data import create_dataset, create_loader
from vtkernels.models import Segmenter
from vtkernels.train import ClassificationTask, SegmentationTask, Settings, Trainer


@dataclass(frozen=True)
class Plan:
    model: str = "swin_nano_patch4_window4_32"
    size: int = 32
    seeds: int = 3
    images: int = 1024
    epochs: int = 20
    head_images: int = 320
    head_epochs: int = 8
    test_images: int = 320
    lr: float = 2e-3


def trained(task: torch.nn.Module, kind: str, plan: Plan, seed: int, images: int, epochs: int) -> dict[str, float]:
    """The metrics on the test images after the last epoch."""
    options = {"size": plan.size, "task": kind, "seed": seed}
    train, test = create_dataset("shapes", "train", count=images, **options), create_dataset("shapes", "test", count=plan.test_images, **options)
    loaders = [
        create_loader(train, 32, train=True, seed=seed, statistics=train.statistics),
        create_loader(test, 64, statistics=test.statistics),
    ]
    settings = Settings(epochs=epochs, eval_every=epochs, seed=seed, monitor="loss", monitor_mode="min")
    updates = epochs * len(loaders[0])
    schedule = vt.optim.schedules.Cosine(lr=plan.lr, length=updates, warmup=updates // 20)
    optimizer = torch.optim.AdamW([param for param in task.parameters() if param.requires_grad], weight_decay=0.01)
    return Trainer(task, optimizer, schedule, *loaders, settings).fit().epochs[-1].valid


def compared(plan: Plan, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    classifier = vt.create_model(plan.model, num_classes=8, img_size=plan.size)
    beginning = {name: value.clone() for name, value in classifier.state_dict().items()}
    found = {"seed": seed, "top1": trained(ClassificationTask(classifier), "classification", plan, seed, plan.images, plan.epochs)["top1"]}
    for name, state in (("trained", classifier.state_dict()), ("random", beginning)):
        trunk = vt.create_model(plan.model, num_classes=8, img_size=plan.size)
        trunk.load_state_dict(state)
        # the same head for both
        torch.manual_seed(seed)
        task = SegmentationTask(Segmenter(trunk, 9, head="fcn", channels=32, frozen=True))
        found[name] = trained(task, "segmentation", plan, seed, plan.head_images, plan.head_epochs)["miou"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the result, none is written without it")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    out, plan = given.pop("out"), Plan(**given)
    start, cpu, rows = time.perf_counter(), time.process_time(), []
    for seed in range(plan.seeds):
        rows.append(compared(plan, seed))
        print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    gains = [row["trained"] - row["random"] for row in rows]
    print(f"mIoU of frozen trained features over random ones: {min(gains):+.3f} to {max(gains):+.3f}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        versions = {"vtkernels": vt.__version__, "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        result = {"claim": "frozen trained features beat random features in segmentation of shapes (mIoU)", "plan": asdict(plan), "rows": rows}
        seconds = {"wall_s": round(time.perf_counter() - start, 1), "cpu_s": round(time.process_time() - cpu, 1), "threads": torch.get_num_threads()}
        (out / "frozen_features.json").write_text(json.dumps({**result, **seconds, "versions": versions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
