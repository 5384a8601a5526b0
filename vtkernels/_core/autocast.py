"""Whether devices have an autocast mode: to ask others whether it is on is an error."""

import torch


def has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# torch 2.11's compiler cannot look into the question, and breaks the graph there; the answer never changes. This is what
# torch.compiler.assume_constant_result does, which would import the compiler, and triton, at once
has_autocast._dynamo_marked_constant = True
