"""The logits, labels and teacher that golden numbers of losses are told for."""

import torch

Z = torch.tensor([[1, 2, -1, 0.5], [0.2, -0.3, 0.7, 1.1]], dtype=torch.float64)
Y = torch.tensor([1, 3])
T = torch.tensor([[0.5, 1.5, 0, -1], [1, 0, 0.2, 2]], dtype=torch.float64)


def one_hot(target=Y, classes=4):
    return torch.nn.functional.one_hot(target, classes).double()


def random(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def equal(value, expected, atol=1e-12):
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=atol)
