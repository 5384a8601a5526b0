"""Problems whose curvature and kernels are known, and a dense Hessian of anything small."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LABELS = torch.tensor([0, 1, 1])
EIGENVALUES = (-0.40584381, -0.25340786, -0.03760636, 0, 0, 0, 0.04406460, 0.07474558, 0.25692617, 0.42839687, 1.26553844, 2.89305183)
TRACE = 4.265865456236431


def golden_model() -> nn.Module:
    """tanh(X W1^T) W2^T of the specification, in float64."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_((torch.arange(6, dtype=torch.float64) + 0.3).sin().view(3, 2))
        model[2].weight.copy_((0.7 * torch.arange(6, dtype=torch.float64)).cos().view(2, 3))
    return model


def golden_loader() -> list[tuple[Tensor, Tensor]]:
    """In two batches of different size, whose mean is not that of the batches' means."""
    images = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    return [(images[:2], LABELS[:2]), (images[2:], LABELS[2:])]


class Quadratic(nn.Module):
    """A model whose "loss" w A w / 2 has the Hessian A, with the criterion `first_number`."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, len(matrix), dtype=matrix.dtype))
        self.register_buffer("matrix", matrix)

    def forward(self, images: Tensor) -> Tensor:
        return (0.5 * self.weight @ self.matrix @ self.weight).expand(len(images), 2)


def first_number(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[:, 0].mean()


def quadratic(eigenvalues: list[float], seed: int = 0) -> Quadratic:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64))
    return Quadratic(basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T)


ONE_IMAGE = [(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))]


def dense_hessian(model: nn.Module, images: Tensor, targets: Tensor, names: list[str] | None = None) -> Tensor:
    """Of the mean cross-entropy in eval mode and float64, by torch's own forward-over-reverse, of the given parameters."""
    model = model.double().eval()
    named = {name: value for name, value in model.named_parameters() if names is None or name in names}
    shapes, sizes = [value.shape for value in named.values()], [value.numel() for value in named.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = {name: part.view(shape) for name, part, shape in zip(named, flat.split(sizes), shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parts, (images.double(),)), targets)

    flat = torch.cat([value.detach().reshape(-1) for value in named.values()])
    return torch.autograd.functional.hessian(loss, flat)
