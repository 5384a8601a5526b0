"""SAM in Lightning: a mix-in for any LightningModule with automatic optimization.

python examples/sam_lightning.py
"""

import contextlib
from typing import Any

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import vtkernels as vt


class SAMMixin:
    """Put it before LightningModule, and let `configure_optimizers` return a `vt.optim.SAM(..., amp_scaling=False)`.

    Works with every precision, accumulate_grad_batches, gradient_clip_val and DDP. What `training_step` logs is logged in both
    passes: of a value of a step, that of pass two remains.
    """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # pass two goes over all micro-batches again
        self.__dict__.setdefault("_micro_batches", []).append((batch, batch_idx))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        sam, scaler = optimizer.optimizer, getattr(self.trainer.precision_plugin, "scaler", None)
        loss = optimizer_closure()

        def pass_two() -> Tensor | None:
            for micro_batch in self._micro_batches[:-1]:
                self._backward_again(micro_batch, sam)
            return optimizer_closure()

        def pass_two_before_scaler() -> Tensor | None:
            with sam.perturbed() as wanted:
                if wanted:
                    pass_two()
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, pass_two if scaler is None else pass_two_before_scaler)
        self._micro_batches.clear()

    def _backward_again(self, micro_batch: tuple[Any, int], sam: vt.optim.SAM) -> None:
        strategy = self.trainer.strategy
        with getattr(strategy, "block_backward_sync", contextlib.nullcontext)():
            out = strategy.training_step(*micro_batch)
            loss = out["loss"] if isinstance(out, dict) else out
            strategy.backward(loss / self.trainer.accumulate_grad_batches, sam)


class Digits(SAMMixin, lightning.LightningModule):
    def __init__(self, rho: float = 0.1, lr: float = 3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        sam = vt.optim.SAM(self.parameters(), torch.optim.AdamW, rho=self.hparams.rho, lr=self.hparams.lr, model=self.net, amp_scaling=False)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sam, T_max=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": sam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batches(size: int = 64, samples: int = 1437, shuffle: bool = True) -> DataLoader:
    data = load_digits()
    images, labels = torch.tensor(data.images[:samples], dtype=torch.float32) / 8 - 1, torch.tensor(data.target[:samples])
    return DataLoader(TensorDataset(images, labels), size, shuffle=shuffle)


if __name__ == "__main__":
    lightning.seed_everything(0)
    trainer = lightning.Trainer(max_epochs=5, gradient_clip_val=1.0, accumulate_grad_batches=2, logger=False, enable_checkpointing=False)
    trainer.fit(Digits(), batches(size=32))
