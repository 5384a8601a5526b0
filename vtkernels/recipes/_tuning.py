"""Which part of a model is trained; the rest is frozen, and stays in evaluation mode. Each choice is a class of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtkernels.recipes._errors import refuse

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class HeadOnly:
    """The classifier on frozen features."""

    def build(self, model: "nn.Module") -> None:
        from vtkernels.optim.groups import head_parameters

        head = head_parameters(model)
        for param in model.parameters():
            param.requires_grad_(id(param) in head)


@dataclass(frozen=True, kw_only=True)
class AttentionOnly:
    """Attention, positions and the classifier: a third of a ViT, as in "Three things everyone should know about vision transformers"."""

    def build(self, model: "nn.Module") -> None:
        from vtkernels.optim.groups import head_parameters

        wanted = head_parameters(model)
        attention = {id(param) for name, param in model.named_parameters() if "attn" in name.split(".")}
        if not attention:
            refuse("model.trained", "be another choice for a model without attention", type(model).__name__, "try --model.trained headonly")
        wanted |= attention | {id(param) for name, param in model.named_parameters() if name.endswith("pos_embed")}
        for param in model.parameters():
            param.requires_grad_(id(param) in wanted)


Tuning = HeadOnly | AttentionOnly
