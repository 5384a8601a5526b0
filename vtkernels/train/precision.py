"""The precision of the forward, and the scale of gradients that float16 asks for."""

import contextlib

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Autocast for forwards, and a GradScaler that does nothing unless the precision is float16."""

    def __init__(self, name: str, device: torch.device):
        self.dtype, self.device = DTYPES[name], device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def forward(self) -> contextlib.AbstractContextManager:
        """Around each single forward: casts of weights that autocast keeps must not outlive a change of these."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)
