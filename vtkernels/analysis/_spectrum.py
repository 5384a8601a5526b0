"""Eigenvalues of a symmetric matrix that is known by its products with vectors only."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class PowerIteration:
    """The eigenvalues of largest modulus, one after the other, as PyHessian finds them.

    Each iteration orthogonalises the vector against those found before, and takes the Rayleigh quotient; an eigenvalue is found when the quotient
    changes by less than a share `tolerance`, and is then the quotient before that change, or after `steps` iterations. It is found at once when the
    residual, the part of the product that is not along the vector, is below that share: an eigenvalue lies no further away.

    Attributes:
        values, vectors: of the eigenpairs that are finished.
        residuals: of the last product of each.
        history: Rayleigh quotients of each eigenvalue, the current one's last.
    """

    def __init__(self, product: Product, steps: int = 100, tolerance: float = 1e-3):
        self.product, self.steps, self.tolerance = product, steps, tolerance
        self.values: list[float] = []
        self.vectors: list[Tensor] = []
        self.residuals: list[float] = []
        self.history: list[list[float]] = []
        self._vector: Tensor | None = None

    def begin(self, start: Tensor) -> None:
        """Turn to the next eigenvalue."""
        self._vector = start
        self.history.append([])

    def step(self) -> bool:
        """One product; False when the eigenvalue is found."""
        vector = _normalised(self._vector)
        for found in self.vectors:
            vector = vector - dot(vector, found) * found
        vector = _normalised(vector)
        image = self.product(vector)
        quotients = self.history[-1]
        quotients.append(dot(image, vector))
        residual = norm(image - quotients[-1] * vector)
        self._vector = _normalised(image)
        exact = residual < self.tolerance * abs(quotients[-1])
        settled = len(quotients) > 1 and abs(quotients[-1] - quotients[-2]) / (abs(quotients[-2]) + 1e-6) < self.tolerance
        if not exact and not settled and len(quotients) < self.steps:
            return True
        self.values.append(quotients[-2] if settled and not exact else quotients[-1])
        self.vectors.append(self._vector)
        self.residuals.append(residual)
        return False


def _normalised(vector: Tensor) -> Tensor:
    return vector / (norm(vector) + 1e-6)


def norm(vector: Tensor) -> float:
    return dot(vector, vector) ** 0.5


def dot(first: Tensor, second: Tensor) -> float:
    """In float64: over millions of numbers, single precision would lose more than a power iteration's tolerance."""
    return float(torch.dot(first.double(), second.double()))


class Ritz(NamedTuple):
    """What a Lanczos basis knows of the spectrum, in ascending order.

    Attributes:
        values: estimates of eigenvalues.
        weights: how much of the starting vector lies along each; with sum 1.
        bounds: an eigenvalue lies within this distance of each value.
    """

    values: Tensor
    weights: Tensor
    bounds: Tensor


class Lanczos:
    """A tridiagonal matrix with the extreme eigenvalues of a large one, grown by a row with each product.

    Every new vector is made orthogonal to all before it, twice: else eigenvalues that have converged come back as ghosts.
    """

    def __init__(self, product: Product, start: Tensor, steps: int):
        self.product = product
        self.diagonal: list[float] = []
        self.beside: list[float] = []
        self._basis = start.new_empty(min(steps, start.numel()), start.numel())
        self._next = start / norm(start)

    def step(self) -> bool:
        """One product; False when there is nothing more to find."""
        count = len(self.diagonal)
        if count == len(self._basis) or self._next is None:
            return False
        vector = self._basis[count] = self._next
        image = self.product(vector)
        self.diagonal.append(dot(image, vector))
        basis = self._basis[: count + 1]
        length = norm(image)
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        rest = norm(image)
        self.beside.append(rest)
        # what is left is rounding: the starting vector's part of the space is exhausted
        exhausted = rest <= 10 * torch.finfo(image.dtype).eps * max(length, *map(abs, self.diagonal))
        if exhausted:
            self.beside[-1] = 0.0
        self._next = None if exhausted else image / rest
        return not exhausted and count + 1 < len(self._basis)

    def ritz(self) -> Ritz:
        count = len(self.diagonal)
        if not count:
            return Ritz(*(torch.empty(0, dtype=torch.float64) for _ in range(3)))
        values, vectors = torch.linalg.eigh(self._matrix())
        return Ritz(values, vectors[0].square(), self.beside[count - 1] * vectors[-1].abs())

    def largest_vectors(self, count: int) -> list[Tensor]:
        """Estimates of the eigenvectors whose eigenvalues are largest in modulus, the largest first; fewer than `count` after fewer products."""
        values, vectors = torch.linalg.eigh(self._matrix())
        best = values.abs().argsort(descending=True)[:count]
        basis = self._basis[: len(self.diagonal)]
        return [basis.T @ vectors[:, index].to(basis) for index in best]

    def _matrix(self) -> Tensor:
        count = len(self.diagonal)
        matrix = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        for index, value in enumerate(self.beside[: count - 1]):
            matrix[index, index + 1] = matrix[index + 1, index] = value
        return matrix


class Density(NamedTuple):
    """Share of the eigenvalues near each point of a grid, as a density."""

    points: Tensor
    values: Tensor


def density(runs: Sequence[Ritz], points: int = 1000, width: float = 0.01) -> Density:
    """The spectrum's density from several Lanczos runs: each value a bell curve, `width` of the whole range wide."""
    values = torch.cat([run.values for run in runs])
    weights = torch.cat([run.weights for run in runs]) / len(runs)
    low, high = float(values.min()), float(values.max())
    sigma = width * max(high - low, 1e-9 * max(abs(low), abs(high), 1.0))
    grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, points, dtype=torch.float64)
    bells = torch.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2) / (sigma * (2 * torch.pi) ** 0.5)
    return Density(grid, bells @ weights)
