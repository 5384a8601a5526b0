"""SAM in the Trainer of Hugging Face's transformers: a mix-in for Trainer and its subclasses.

python examples/sam_hf_trainer.py
"""

import contextlib
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from transformers import Trainer, TrainingArguments

import vtkernels as vt


class SAMMixin:
    """Put it before Trainer: the optimizer that the arguments ask for is wrapped in SAM, and each step has two passes.

    Works with accumulation, clipping, DDP (the gradient of pass one is the global one) and mixed precision. The loss that is
    logged is that of pass one. For SAM's other options give Trainer one of your own: `optimizers=(vt.optim.SAM(...), None)`.
    """

    rho = 0.05

    @classmethod
    def get_optimizer_cls_and_kwargs(cls, args: TrainingArguments, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
        base_optimizer, options = super().get_optimizer_cls_and_kwargs(args, model)
        return vt.optim.SAM, {"base_optimizer": base_optimizer, "rho": cls.rho, **options}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        micro_batches = self.__dict__.setdefault("_micro_batches", [])
        # a copy: a subclass may take labels out of it
        micro_batches.append(dict(inputs))
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            # accelerate's wrapper holds the optimizer
            with self.optimizer.optimizer.perturbed() as wanted:
                for left in range(len(micro_batches) - 1, -1, -1) if wanted else ():
                    with self.accelerator.no_sync(model) if left else contextlib.nullcontext():
                        super().training_step(model, micro_batches[-1 - left], num_items_in_batch)
            micro_batches.clear()
        return loss


class SAMTrainer(SAMMixin, Trainer):
    rho = 0.1


class Digits(nn.Module):
    """Any model that returns a loss for its labels, a PreTrainedModel or not."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def digits(samples: int = 1437) -> Dataset:
    data = load_digits()
    return TensorDataset(torch.tensor(data.images[:samples], dtype=torch.float32) / 8 - 1, torch.tensor(data.target[:samples]))


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def arguments(**options: Any) -> TrainingArguments:
    return TrainingArguments(report_to="none", save_strategy="no", remove_unused_columns=False, **options)


if __name__ == "__main__":
    args = arguments(num_train_epochs=5, per_device_train_batch_size=32, gradient_accumulation_steps=2, learning_rate=3e-3, logging_steps=20)
    SAMTrainer(Digits(), args, train_dataset=digits(), data_collator=collate).train()
