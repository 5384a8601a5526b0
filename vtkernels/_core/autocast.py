"""Whether devices have an autocast mode: to ask others whether it is on is an error."""

import torch


# torch 2.11's compiler cannot look into the question, and breaks the graph there; the answer never changes
@torch.compiler.assume_constant_result
def has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
