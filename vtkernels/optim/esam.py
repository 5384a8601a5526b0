"""Efficient SAM: perturb some tensors, with some samples."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.optim.sam import SAM

# of samples given by their indices, or of all for None: the loss of each
Losses = Callable[[Tensor | None], Tensor]


class ESAM(SAM):
    """Efficient SAM (Du et al., 2022): a random part of the tensors is perturbed, and pass two sees the samples that suffer most.

        def losses(chosen):
            images, targets = (x, y) if chosen is None else (x[chosen], y[chosen])
            return F.cross_entropy(model(images), targets, reduction="none")

        sam.step(losses)

    Stochastic weight perturbation: each tensor is frozen during pass one with probability 1 - beta, which spares its gradient; the
    others climb by eps = rho / beta * g / (|g| + 1e-7). Sharpness-sensitive data selection: of B samples, those whose loss rose by
    strictly more than the floor(gamma * B)-th largest rise are in pass two. beta = gamma = 1 is SAM.
    Costs SAM's copy of the parameters; pass one lacks the frozen tensors' gradients, pass two has gamma * B samples, and with
    gamma < 0.99 there is a forward of all samples between them. Freezing changes the graph: a compiled model is compiled anew.

    With a GradScaler: `sam.both_passes(losses, lambda loss: scaler.scale(loss).backward())`, then `scaler.step(sam)`. `requires_grad`
    is back on every way out of pass one. With DistributedDataParallel as `model`, sync must be local.

    Args:
        params: parameters, or groups of them.
        base_optimizer: the class of the optimizer that makes the step.
        rho: radius of the neighbourhood.
        beta: probability with which a tensor is perturbed.
        gamma: share of the samples in pass two; from 0.99 on all of them.
        options: those of `SAM` and of the base optimizer.
    """

    _copied = (*SAM._copied, "beta", "gamma")

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: float = 0.05,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        **options: Any,
    ):
        for name, value in (("beta", beta), ("gamma", gamma)):
            if not 0.0 < value <= 1.0:
                check.fail("ESAM", name, "be above 0 and at most 1", value, "1 is SAM, the authors use 0.5 to 0.6")
        self.beta, self.gamma = float(beta), float(gamma)
        super().__init__(params, base_optimizer, rho, **{"perturb_eps": 1e-7, **options})

    def step(self, closure: Losses | None = None) -> Tensor | None:
        """Both passes and the base step, `closure` giving the loss of each sample; without it, what is left after `both_passes`.

        Returns:
            The mean loss of pass one.
        """
        if closure is None:
            return self._rest_of_step()
        if getattr(self, "found_inf", None) is not None:
            raise RuntimeError("ESAM: GradScaler.step must come without a closure, got one; call sam.both_passes(losses, backward), then scaler.step(sam)")
        loss = self.both_passes(closure)
        self.second_step()
        return loss

    def both_passes(self, losses: Losses, backward: Callable[[Tensor], Any] = Tensor.backward) -> Tensor:
        """Both passes; the parameters are back after them, and the gradients ready for `step()`.

        Args:
            losses: given None, the loss of each sample of the batch; given indices, of those samples.
            backward: called with each pass's mean loss.

        Returns:
            The mean loss of pass one.
        """
        self.zero_grad()
        with torch.enable_grad(), self._some_frozen():
            before = self._per_sample(losses(None))
            backward(before.mean())
        before = before.detach()
        with self.perturbed() as wanted:
            if wanted:
                chosen, weights = self._select(before, losses)
                with torch.enable_grad():
                    after = self._per_sample(losses(chosen))
                    backward(after.mean() if weights is None else (after * weights).sum())
        return before.mean()

    @contextlib.contextmanager
    def _some_frozen(self) -> Iterator[None]:
        """A random part of the tensors wants no gradient inside."""
        frozen = self._draw() if self.two_passes_wanted else []
        for param in frozen:
            param.requires_grad_(False)
        try:
            yield
        finally:
            for param in frozen:
                param.requires_grad_(True)

    def _draw(self) -> list[Tensor]:
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        if self.beta == 1.0 or not params:
            return []
        drawn = torch.rand(len(params))
        # one tensor at least must climb
        drawn[int(drawn.argmin())] = 0.0
        return [param for param, number in zip(params, drawn.tolist(), strict=True) if number >= self.beta]

    def _neighbourhood(self, group: dict[str, Any], param: Tensor) -> tuple[float, bool, float]:
        rho, adaptive, eta = super()._neighbourhood(group, param)
        return rho / self.beta, adaptive, eta

    @torch.no_grad()
    def _select(self, before: Tensor, losses: Losses) -> tuple[Tensor | None, Tensor | None]:
        """The samples of pass two, and their weights: 0 for a tie with the first that is left out. None: all, weighted alike."""
        if self.gamma >= 0.99 or len(before) < 2:
            return None, None
        rise = self._per_sample(losses(None)) - before
        place = max(int(len(rise) * self.gamma), 1)
        # their number is known without asking the device
        count = max(place - 1, 1)
        largest, order = rise.topk(place)
        above = (largest[:count] > largest[-1]).to(before.dtype)
        above = torch.where(above.any(), above, 1.0)
        return order[:count], above / above.sum()

    def _per_sample(self, losses: Any) -> Tensor:
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            check.fail("ESAM", "the closure", "return the loss of each sample, a tensor of one dimension", got, 'try reduction="none"')
        return losses
