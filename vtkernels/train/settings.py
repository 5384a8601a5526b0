"""How a run is run, whatever is learnt in it."""

from dataclasses import dataclass

from vtkernels._core import check

CHOICES = {
    "precision": ("float32", "bfloat16", "float16"),
    "clip_mode": ("norm", "value", "adaptive"),
    "channels_last": (True, False, "auto"),
    "monitor_mode": ("max", "min"),
    "parallel": ("auto", "ddp", "fsdp2", "none"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a `Trainer` can be told besides what to learn.

    Attributes:
        epochs: passes over the training set.
        precision: of the forward: float32, bfloat16, or float16 with scaled gradients. Weights are float32.
        accumulate: batches whose gradients make one update.
        clip_norm: bound of the gradients; None leaves them free.
        clip_mode: what is bounded: the "norm" of all together; the "value" of each number; or "adaptive", the norm of each unit over that of its
            weights, but for the head's.
        ema_decay: of the moving average of the weights, which is evaluated beside them; None has no average.
        ema_warmup: let the average follow faster at first.
        grad_checkpointing: compute activations twice rather than keep them.
        channels_last: images and convolutions in that layout; "auto" for models that have convolutions only.
        compile: torch.compile for the model.
        deterministic: only algorithms that repeat to the bit on GPUs, too; slower.
        seed: of dropout and the like; the loader and the model's weights have their own.
        monitor: the metric that tells the best epoch; of the averaged weights where there is an average.
        monitor_mode: whether "max" or "min" of it is best.
        patience: stop after so many evaluations without a new best; None goes on to the end.
        min_delta: what a new best must be better by.
        step_back: after a loss that is not finite, how often to go back to the last good state and on with a lower learning rate.
        step_back_factor: of the learning rate then.
        log_every: updates between records of steps. With several processes, signals and losses that are not finite are noticed then.
        eval_every: epochs between evaluations; after the last one there always is one.
        save_every_minutes: between checkpoints inside of an epoch; there is one after each epoch, too.
        save_every_updates: the same in updates.
        parallel: "ddp" copies the model to each process, "fsdp2" shards it; "auto" is ddp where there are several.
        find_unused: for ddp: some parameters have no gradient in some updates.
    """

    epochs: int = 10
    precision: str = "float32"
    accumulate: int = 1
    clip_norm: float | None = None
    clip_mode: str = "norm"
    ema_decay: float | None = None
    ema_warmup: bool = False
    grad_checkpointing: bool = False
    channels_last: bool | str = "auto"
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    monitor: str = "top1"
    monitor_mode: str = "max"
    patience: int | None = None
    min_delta: float = 0.0
    step_back: int = 0
    step_back_factor: float = 0.5
    log_every: int = 20
    eval_every: int = 1
    save_every_minutes: float | None = 15.0
    save_every_updates: int | None = None
    parallel: str = "auto"
    find_unused: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                check.fail("Settings", name, f"be one of {', '.join(map(str, allowed))}", repr(getattr(self, name)))
        for name in ("epochs", "accumulate", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                check.fail("Settings", name, "be at least 1", getattr(self, name))
        if self.step_back < 0:
            check.fail("Settings", "step_back", "be at least 0", self.step_back)
        for name in ("clip_norm", "save_every_minutes", "save_every_updates"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                check.fail("Settings", name, "be above 0, or None", getattr(self, name))
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            check.fail("Settings", "ema_decay", "lie in [0, 1), or be None", self.ema_decay, "0.9999 is usual")
        if not 0 < self.step_back_factor < 1:
            check.fail("Settings", "step_back_factor", "lie between 0 and 1", self.step_back_factor)
        if self.parallel == "fsdp2" and self.channels_last is True:
            check.fail("Settings", "channels_last", "be False or 'auto' with parallel='fsdp2'", True, "torch shards contiguous weights only")
