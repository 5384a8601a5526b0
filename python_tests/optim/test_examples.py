"""The examples run, and perturb: what they train is what a loop by hand trains."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from optional import peer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vtkernels as vt

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RATE, RADIUS = 1e-3, 0.1


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def importable(*names: str) -> None:
    """Trainers are no requirement of the tests: skipped where one is missing, or does not fit this torch."""
    try:
        for name in names:
            peer(name)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        pytest.skip(str(error))


def by_hand(model: nn.Module, batches: list, pieces: int, rho: float = RADIUS, clip: float | None = None, dtype: torch.dtype | None = None) -> list[float]:
    """Plain PyTorch, no SAM of ours: the weights end in `model`, the losses of each step's pass one come back."""
    params = list(model.parameters())
    adam = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0, foreach=False)
    curve = []

    def gradients(micro_batches: list) -> float:
        adam.zero_grad()
        total = 0.0
        for images, labels in micro_batches:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = F.cross_entropy(model(images), labels) / pieces
            loss.backward()
            total += loss.item()
        return total

    for start in range(0, len(batches), pieces):
        micro_batches = batches[start : start + pieces]
        curve.append(gradients(micro_batches))
        here = [param.detach().clone() for param in params]
        norm = torch.cat([param.grad.flatten() for param in params]).norm()
        with torch.no_grad():
            for param in params:
                param += rho * param.grad / norm
        gradients(micro_batches)
        with torch.no_grad():
            for param, old in zip(params, here, strict=True):
                param.copy_(old)
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
        adam.step()
    return curve


def assert_trained_alike(model: nn.Module, expected: nn.Module, start: nn.Module, plain: nn.Module, rtol: float = 1e-3) -> None:
    """Apart by a small part of what SAM changes: `plain` was trained without perturbing."""
    vectors = [nn.utils.parameters_to_vector(net.parameters()).detach() for net in (model, expected, start, plain)]
    assert (vectors[1] - vectors[2]).norm() > 0.1
    assert (vectors[0] - vectors[1]).norm() < rtol * (vectors[3] - vectors[1]).norm()


def lightning_trainer(**options):
    import lightning.pytorch as lightning

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, **quiet, **options)


@pytest.mark.parametrize(
    ("pieces", "clip", "precision"), [(1, None, "32"), (2, None, "32"), (1, 0.1, "32"), (2, 0.1, "fp16"), (1, None, "fp16"), (2, 0.1, "bf16-mixed")], ids=str
)
def test_lightning(pieces, clip, precision):
    importable("lightning.pytorch")
    module = example("sam_lightning")
    loader = module.batches(size=16, samples=160, shuffle=False)

    class Constant(module.Digits):
        def configure_optimizers(self):
            return vt.optim.SAM(self.parameters(), torch.optim.AdamW, rho=self.hparams.rho, lr=RATE, weight_decay=0.0, amp_scaling=False)

    digits = Constant(rho=RADIUS)
    start, expected, plain = (copy.deepcopy(digits.net) for _ in range(3))
    dtype = {"32": None, "fp16": torch.float16, "bf16-mixed": torch.bfloat16}[precision]
    options = {"precision": precision}
    if precision == "fp16":
        from lightning.pytorch.plugins.precision import MixedPrecision

        options = {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]}
    lightning_trainer(accumulate_grad_batches=pieces, gradient_clip_val=clip, **options).fit(digits, loader)
    by_hand(expected, list(loader), pieces, RADIUS, clip, dtype)
    by_hand(plain, list(loader), pieces, 0.0, clip, dtype)
    # under a scaler other digits of the half-precision gradients are rounded away
    assert_trained_alike(digits.net, expected, start, plain, 1e-3 if dtype is None else 0.1)


def test_lightning_skips_an_overflow():
    importable("lightning.pytorch")
    from lightning.pytorch.plugins.precision import MixedPrecision

    module = example("sam_lightning")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    digits = module.Digits()
    start = copy.deepcopy(digits.net.state_dict())
    trainer = lightning_trainer(gradient_clip_val=1.0, max_steps=3, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    trainer.fit(digits, module.batches(size=16, samples=160))
    assert scaler.get_scale() == 2.0**37 and trainer.global_step == 3
    assert all(torch.equal(value, start[name]) for name, value in digits.net.state_dict().items())


def test_lightning_by_manual_optimization():
    """As examples/README.md tells it."""
    importable("lightning.pytorch")
    module = example("sam_lightning")
    loader = module.batches(size=16, samples=160, shuffle=False)

    class Manual(module.lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization, self.net = False, module.Digits().net

        def configure_optimizers(self):
            return vt.optim.SAM(self.parameters(), torch.optim.AdamW, rho=RADIUS, lr=RATE, weight_decay=0.0)

        def training_step(self, batch, batch_idx):
            sam = self.optimizers()

            def backward():
                self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))

            backward()
            sam.step(closure=backward)
            sam.zero_grad()

    manual = Manual()
    start, expected, plain = (copy.deepcopy(manual.net) for _ in range(3))
    trainer = lightning_trainer()
    trainer.fit(manual, loader)
    by_hand(expected, list(loader), 1)
    by_hand(plain, list(loader), 1, 0.0)
    assert trainer.global_step == len(loader)
    assert_trained_alike(manual.net, expected, start, plain)


@pytest.mark.parametrize(("pieces", "clip", "bf16"), [(1, 0.0, False), (2, 0.0, False), (2, 0.1, False), (2, 0.1, True)], ids=str)
def test_hugging_face_trainer(pieces, clip, bf16, tmp_path):
    importable("accelerate", "transformers.trainer")
    module = example("sam_hf_trainer")
    data = module.digits(160)
    loader = DataLoader(data, 16)

    class InOrder(module.SAMTrainer):
        rho = RADIUS

        def get_train_dataloader(self):
            return self.accelerator.prepare(DataLoader(data, 16, collate_fn=module.collate))

    model = module.Digits()
    start, expected, plain = (copy.deepcopy(model.net) for _ in range(3))
    options = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": pieces, "max_grad_norm": clip, "bf16": bf16, "use_cpu": True}
    args = module.arguments(
        output_dir=str(tmp_path), num_train_epochs=1, learning_rate=RATE, lr_scheduler_type="constant", logging_steps=1, disable_tqdm=True, **options
    )
    trainer = InOrder(model, args, train_dataset=data, data_collator=module.collate)
    trainer.train()
    curve = by_hand(expected, list(loader), pieces, RADIUS, clip or None, torch.bfloat16 if bf16 else None)
    by_hand(plain, list(loader), pieces, 0.0, clip or None, torch.bfloat16 if bf16 else None)
    assert_trained_alike(model.net, expected, start, plain, 0.1 if bf16 else 1e-3)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(curve, rel=1e-2 if bf16 else 1e-3)


def run_loop(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / "sam_loop.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_loop_resumes_where_it_was(tmp_path):
    importable("sklearn")
    loop = example("sam_loop")
    common = ["--epochs", "2", "--batch", "128"]
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    end = loop.main([*common, "--checkpoint", str(whole)])
    loop.main([*common, "--checkpoint", str(parts), "--stop-after", "1"])
    assert torch.load(parts)["epoch"] == 0
    assert loop.main([*common, "--checkpoint", str(parts), "--resume"]) == end
    found, expected = torch.load(parts), torch.load(whole)
    assert found["epoch"] == 1 and all(torch.equal(found["model"][name], value) for name, value in expected["model"].items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_loop_learns(precision):
    importable("sklearn")
    assert example("sam_loop").main(["--epochs", "2", "--precision", precision]) > 0.7


@pytest.mark.slow
def test_loop_in_two_processes(tmp_path):
    importable("sklearn")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / "sam_loop.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    found = subprocess.run([*command, "--epochs", "2"], env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    last = found.stdout.strip().splitlines()[-1]
    assert last.startswith("epoch 1:") and float(last.split()[-1].rstrip("%")) > 70


def test_loop_says_what_it_lacks():
    importable("sklearn")
    found = run_loop("--resume")
    assert found.returncode == 2 and "--resume needs --checkpoint" in found.stderr


def test_timms_swin_accelerated_trains_as_it_would_alone(capsys):
    importable("sklearn", "timm")
    module = example("accelerate_timm")
    accelerated = module.main(epochs=1)
    assert "3 x SwinTransformerBlock" in capsys.readouterr().out
    assert accelerated > 0.6
    assert accelerated == pytest.approx(module.main(epochs=1, accelerated=False), abs=0.05)
