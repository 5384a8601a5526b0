"""The other ways to make a SAM step, with the gradients of both passes given.

A side is made for a problem and holds its own parameters and states: `first()` climbs, `second()` comes back and steps. What a
training loop does anyway, a backward pass leaving its gradient in p.grad, is a plain assignment here.
"""

from collections.abc import Callable

import torch
from peers.window_attention import Unavailable
from sam_problem import EPS, Problem
from torch import Tensor


class Side:
    """One way to make a SAM step."""

    params: list[Tensor]

    def first(self) -> None:
        raise NotImplementedError

    def second(self) -> None:
        raise NotImplementedError

    def step(self) -> None:
        self.first()
        self.second()


class Published(Side):
    """What everyone copies, by its algorithm: a norm of norms, a clone and an e_w for each parameter, p.data set to the clone.

    The products with T = 1 are part of it: the expressions serve the adaptive variant too.
    """

    def __init__(self, problem: Problem, **implementation: bool):
        self.problem = problem
        self.params = [torch.nn.Parameter(tensor) for tensor in problem.copies()]
        self.optimizer = problem.base.optimizer(self.params, **problem.base.settings, **implementation)
        self.old: dict[Tensor, Tensor] = {}

    def first(self) -> None:
        stretch = 1.0
        for p, g in zip(self.params, self.problem.first, strict=True):
            p.grad = g
        norm = torch.norm(torch.stack([(stretch * p.grad).norm(p=2) for p in self.params]), p=2)
        scale = self.problem.rho / (norm + EPS)
        for p in self.params:
            self.old[p] = p.data.clone()
            e_w = stretch * p.grad * scale.to(p)
            p.add_(e_w)

    def second(self) -> None:
        for p, g in zip(self.params, self.problem.second, strict=True):
            p.grad = g
        for p in self.params:
            p.data = self.old[p]
        self.optimizer.step()


class Foreach(Side):
    """The same in torch's multi-tensor functions, in place and with one backup that is reused."""

    def __init__(self, problem: Problem, **implementation: bool):
        self.problem = problem
        self.params = problem.copies()
        self.backups = problem.backups
        for p, g in zip(self.params, problem.second, strict=True):
            p.grad = g
        self.optimizer = problem.base.optimizer(self.params, **problem.base.settings, **implementation)

    def first(self) -> None:
        grads = self.problem.first
        scale = self.problem.rho / (foreach_norm(grads) + EPS)
        torch._foreach_copy_(self.backups, self.params)
        if scale.is_cuda:
            torch._foreach_add_(self.params, torch._foreach_mul(grads, scale))
        else:
            # a number costs nothing here, and saves writing and reading the product
            torch._foreach_add_(self.params, grads, alpha=float(scale))

    def second(self) -> None:
        torch._foreach_copy_(self.params, self.backups)
        self.optimizer.step()


def foreach_norm(grads: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


class Inductor(Side):
    """torch.compile of the multi-tensor version, base step included: one graph for each pass, compiled once."""

    def __init__(self, problem: Problem):
        if not torch._dynamo.is_dynamo_supported():
            raise Unavailable("torch.compile does not support this Python or platform")
        self.problem = problem
        self.params, self.backups = problem.copies(), problem.backups
        self.states = [problem.zeros() for _ in range(problem.base.states)]
        self.count = torch.zeros((), device=problem.device)
        # the generated C++ fixes the thread count: named, it is part of the compiler cache's key
        options = {"cpp.threads": torch.get_num_threads()} if problem.device == "cpu" else None

        def compiled(run: Callable[..., None]) -> Callable[..., None]:
            return torch.compile(run, fullgraph=True, dynamic=False, options=options)

        self._first = compiled(_climb)
        self._second = compiled(_sgd if problem.base.name == "sgd" else _adamw)
        self.settings = problem.base.settings

    def first(self) -> None:
        self._first(self.params, self.problem.first, self.backups, self.problem.rho)

    def second(self) -> None:
        self._second(self.params, self.problem.second, self.backups, *self.states, self.count, **self.settings)


def _climb(params: list[Tensor], grads: list[Tensor], backups: list[Tensor], rho: float) -> None:
    scale = rho / (foreach_norm(grads) + EPS)
    torch._foreach_copy_(backups, params)
    torch._foreach_add_(params, torch._foreach_mul(grads, scale))


def _sgd(params, grads, backups, buffers, count, lr, momentum, weight_decay) -> None:
    grads = torch._foreach_add(grads, backups, alpha=weight_decay)
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    torch._foreach_copy_(params, torch._foreach_add(backups, buffers, alpha=-lr))


def _adamw(params, grads, backups, exp_avgs, exp_avg_sqs, count, lr, betas, eps, weight_decay) -> None:
    count.add_(1)
    size, root = lr / (1 - betas[0] ** count), (1 - betas[1] ** count).sqrt()
    torch._foreach_lerp_(exp_avgs, grads, 1 - betas[0])
    torch._foreach_mul_(exp_avg_sqs, betas[1])
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - betas[1])
    roots = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(roots, root)
    torch._foreach_add_(roots, eps)
    torch._foreach_mul_(roots, 1 / size)
    weights = torch._foreach_mul(backups, 1 - lr * weight_decay)
    torch._foreach_copy_(params, torch._foreach_sub(weights, torch._foreach_div(exp_avgs, roots)))


class Plain(Side):
    """No SAM at all: the base optimizer's fused step, from the second gradient."""

    def __init__(self, problem: Problem):
        self.params = problem.copies()
        for p, g in zip(self.params, problem.second, strict=True):
            p.grad = g
        self.optimizer = problem.base.optimizer(self.params, **problem.base.settings, fused=True)

    def first(self) -> None:
        pass

    def second(self) -> None:
        self.optimizer.step()


# what torch chooses by itself is single-tensor on a CPU and foreach on a GPU
PEERS: dict[str, Callable[[Problem], Side]] = {
    "published": Published,
    "published_single": lambda problem: Published(problem, foreach=False),
    "published_foreach": lambda problem: Published(problem, foreach=True),
    "published_fused": lambda problem: Published(problem, fused=True),
    "foreach": lambda problem: Foreach(problem, foreach=True),
    "foreach_fused": lambda problem: Foreach(problem, fused=True),
    "inductor": Inductor,
}
