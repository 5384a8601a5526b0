"""`accelerate`: find in a model what our ops can compute, and let them; `restore`, and a report on both."""

import importlib
from collections import defaultdict
from typing import Any, NamedTuple

from torch import nn

from vtkernels._core import check
from vtkernels._core.op import OPS
from vtkernels.integrations.instances import install, is_ours
from vtkernels.integrations.rules import RULES, Rule, is_own, rule_for

# the tables; importing one adds its rules, the first that fits a module is taken
for _table in ("swin", "swin_v2", "cait", "pooling", "feed_forward"):
    importlib.import_module(f"vtkernels.integrations.{_table}")


class Entry(NamedTuple):
    """What became of one module. `reason` says why it was left alone; None if it was replaced."""

    name: str
    module: str
    op: str | None
    reason: str | None


class AccelerationReport(NamedTuple):
    """One entry for each module that some op could serve, or that looks as if. Print it."""

    entries: tuple[Entry, ...]

    @property
    def replaced(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.reason is None)

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.reason is not None)

    def __str__(self) -> str:
        groups = defaultdict(list)
        for entry in self.entries:
            groups[entry._replace(name="")].append(entry.name or "the model itself")
        lines = [f"{len(self.replaced)} modules replaced, {len(self.left_alone)} left alone"]
        for (_, module, op, reason), names in sorted(groups.items(), key=lambda group: group[0].reason is not None):
            where = names[0] if len(names) == 1 else f"{names[0]}, ..., {names[-1]}"
            lines.append(f"  {len(names)} x {module} ({where}): {op if reason is None else 'left alone: ' + reason}")
        return "\n".join(lines)

    __repr__ = __str__


def accelerate(model: nn.Module, backend: str = "auto") -> nn.Module:
    """Let our ops compute the attention and feed-forward layers of another library's model, in place.

    Known are Swin's and SwinV2's blocks (timm, torchvision, Hugging Face, the official code), CaiT's class attention and talking
    heads (timm, the official code), pooled attention (timm, Hugging Face), Linear layers and MLPs. Parameters, `state_dict`,
    module types, hooks on the blocks and the results stay; the model trains, compiles, is copied and pickled as before, and
    replacements survive copying and pickling. What is not known to give the same is left alone: `acceleration_report` says why. A
    hook that is added later where it could not be called switches its block back to the original code.

    Do this before `torch.compile`, DDP or FSDP. Not for `torch.jit.script`, `torch.fx` and `nn.DataParallel`: `restore` first.

    Args:
        model: changed in place.
        backend: of the ops: auto, triton, cpu or reference.

    Returns:
        The model.
    """
    _check(model, "accelerate")
    names = list(dict.fromkeys(("auto", *(name for rule in RULES for name in OPS[rule.op].backend_names))))
    if backend not in names:
        check.fail("accelerate", "backend", f"be one of {', '.join(names)}", repr(backend))
    for module in model.modules():
        rule = rule_for(module)
        if rule is not None and _refusal(rule, module, backend) is None:
            install(module, rule.method, rule.replacement, backend)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`, in place: each module computes by its class's own code again. Returns the model."""
    _check(model, "restore")
    for module in model.modules():
        for name in [name for name, value in module.__dict__.items() if is_ours(value)]:
            delattr(module, name)
    return model


def acceleration_report(model: nn.Module) -> AccelerationReport:
    """What runs on our ops in this model at present, and why the rest does not: a look at the model as it is, accelerated or not."""
    _check(model, "acceleration_report")
    rules = {name: rule for name, module in model.named_modules() if (rule := rule_for(module)) is not None}
    # what happens to a block happens to the attention within
    accounted = {f"{name}.{path}".removeprefix(".") for name, rule in rules.items() for path in rule.parts}
    entries = []
    for name, module in model.named_modules():
        if name in rules:
            entries.append(Entry(name, type(module).__name__, rules[name].op, _reason(rules[name], module)))
        elif name not in accounted and _looks_like_attention(module) and not _holds_attention(name, rules):
            entries.append(Entry(name, type(module).__name__, None, "no rule knows this class"))
    return AccelerationReport(tuple(entries))


def _reason(rule: Rule, module: nn.Module) -> str | None:
    """Why the module does not run on our ops at present."""
    if is_ours(module.__dict__.get(rule.method)):
        return rule.why_not(module)
    return _refusal(rule, module, "auto") or "vt.accelerate(model) was not called, or was undone"


def _check(model: Any, name: str) -> None:
    if not isinstance(model, nn.Module):
        check.fail(name, "model", "be a torch.nn.Module", type(model).__name__, error=TypeError)


def _refusal(rule: Rule, module: nn.Module, backend: str) -> str | None:
    return rule.why_not(module) or rule.why_slow(module, backend)


def _looks_like_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return not is_own(module) and ("attention" in name or "attn" in name)


def _holds_attention(name: str, rules: dict[str, Rule]) -> bool:
    inside = f"{name}.".removeprefix(".")
    return any(inner.startswith(inside) and rule.op.endswith("attention") for inner, rule in rules.items())
