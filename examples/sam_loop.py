"""A whole training loop with SAM: mixed precision, clipping, schedule, several processes, resuming. Learns to read 8 x 8 digits.

python examples/sam_loop.py
python examples/sam_loop.py --checkpoint run.pt --resume
torchrun --nproc-per-node 2 examples/sam_loop.py
"""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import vtkernels as vt


class TinyViT(nn.Module):
    """16 patches of 2 x 2 pixels, one block of attention, mean of the tokens."""

    def __init__(self, dim: int = 64, classes: int = 10):
        super().__init__()
        self.embed = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        self.position = nn.Parameter(torch.randn(16, dim) / 4)
        self.block = nn.TransformerEncoderLayer(dim, nhead=4, dim_feedforward=2 * dim, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.block(tokens)).mean(1))


def digits(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels for training, then for the test."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32, device=device).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target, device=device)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(device)
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def shares(samples: int, batch: int, epoch: int, rank: int, world: int) -> list[Tensor]:
    """The batches of an epoch as far as they concern this process; an epoch's order depends on its number alone."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))
    return [order[start + rank : start + batch : world] for start in range(0, samples - batch + 1, batch)]


def train(args: argparse.Namespace) -> float:
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[args.precision or ("float16" if gpu else "float32")]
    x, y, test_x, test_y = digits(device)

    torch.manual_seed(args.seed)
    bare = TinyViT().to(device)
    model = DistributedDataParallel(bare) if world > 1 else bare
    decayed = [param for param in bare.parameters() if param.ndim > 1]
    others = [param for param in bare.parameters() if param.ndim <= 1]
    sam = vt.optim.SAM(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        torch.optim.AdamW,
        rho=args.rho,
        lr=args.lr,
        weight_decay=0.05,
        model=model,
        sync="local",
        same_rng=True,
    )
    steps = args.epochs * len(shares(len(x), args.batch, 0, rank, world))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sam, T_max=steps)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    begin = 0
    if args.resume:
        saved = torch.load(args.checkpoint, map_location=device)
        bare.load_state_dict(saved["model"])
        sam.load_state_dict(saved["sam"])
        schedule.load_state_dict(saved["schedule"])
        scaler.load_state_dict(saved["scaler"])
        begin = saved["epoch"] + 1

    for epoch in range(begin, min(args.epochs, args.stop_after or args.epochs)):
        model.train()
        # dropout, too, is the same after resuming
        torch.manual_seed(args.seed + world * epoch + rank + 1)
        total = torch.zeros((), device=device)
        for chosen in shares(len(x), args.batch, epoch, rank, world):
            images, labels = x[chosen], y[chosen]

            def backward(images=images, labels=labels) -> Tensor:
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = F.cross_entropy(model(images).float(), labels, label_smoothing=0.1)
                scaler.scale(loss).backward()
                return loss.detach()

            total += backward()
            with sam.perturbed():
                backward()
            scaler.unscale_(sam)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(sam)
            scaler.update()
            sam.zero_grad()
            schedule.step()
        if rank == 0:
            print(f"epoch {epoch}: loss {total.item() * args.epochs / steps:.4f}, test accuracy {accuracy(bare, test_x, test_y):.2%}")
            if args.checkpoint:
                parts = {"model": bare, "sam": sam, "schedule": schedule, "scaler": scaler}
                torch.save({name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch}, args.checkpoint)
    return accuracy(bare, test_x, test_y)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return right


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--stop-after", type=int, help="leave after so many epochs, as if interrupted")
    parser.add_argument("--batch", type=int, default=32, help="over all processes")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--rho", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], help="of autocast; float16 on a GPU, float32 on a CPU")
    parser.add_argument("--checkpoint", type=Path, help="written after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    args = parser.parse_args(arguments)
    if args.resume and args.checkpoint is None:
        parser.error("--resume needs --checkpoint")
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        return train(args)
    finally:
        if several:
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
