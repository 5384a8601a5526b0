"""A whole SAM training step with the library's ops, captured in a CUDA graph and held to the same steps without one."""

import copy

import torch
from torch import Tensor, nn

import vtkernels as vt

BASES = {"SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), "AdamW": (torch.optim.AdamW, {"lr": 1e-3})}
VIEWS, IMAGES, EDGE, WIDTH, CLASSES = 3, 4, 14, 64, 10
REPLAYS = 3


class Net(nn.Module):
    """Shifted windows, talking heads, class attention: what a graph must hold of each is its forward and its backward."""

    def __init__(self, backend: str = "auto"):
        super().__init__()
        self.backend = backend
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.qkv, self.trunk = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.bias_table = nn.Parameter(torch.zeros(13 * 13, 2))
        self.mix = nn.ParameterList([nn.Parameter(torch.eye(2)) for _ in range(2)])
        self.pool = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        given = {"backend": self.backend}
        x = x + vt.window_attention(self.qkv(self.norms[0](x)), self.bias_table, num_heads=2, window_size=7, shift_size=3, **given)
        x = x.flatten(1, 2)
        x = x + vt.talking_heads_attention(self.trunk(self.norms[1](x)), self.mix[0], None, self.mix[1], None, num_heads=2, **given)
        weights, biases = ([getattr(layer, kind) for layer in self.pool] for kind in ("weight", "bias"))
        return self.head(vt.class_attention(self.norms[2](x), *weights, *biases, num_heads=2, **given))


class Training:
    """One model, its optimizer, and a batch that stays where it is."""

    def __init__(self, base: str, device: str, backend: str = "auto", **options: object):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.model = Net(backend).to(device)
        optimizer, usual = BASES[base]
        self.sam = vt.optim.SAM(self.model.parameters(), optimizer, rho=0.05, backend=backend, **usual, **options)
        self.x = torch.randn(VIEWS * IMAGES, EDGE, EDGE, WIDTH, generator=generator).to(device)
        self.y = torch.randint(CLASSES, (IMAGES,), generator=generator).to(device)

    def step(self) -> None:
        """Forward, backward, climb, forward, backward, back and onwards."""
        self._backward()
        with self.sam.perturbed():
            self._backward()
        self.sam.step()
        self.sam.zero_grad()

    def _backward(self) -> None:
        vt.augmix_loss(self.model(self.x), self.y, num_views=VIEWS, weight=12.0, backend=self.model.backend).backward()


def capture(base: str) -> list[str]:
    """What is wrong with a captured step; needs a GPU."""
    training = Training(base, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # library handles, compiled kernels and the optimizer's state are made outside of the capture
        for _ in range(3):
            training.step()
    torch.cuda.current_stream().wait_stream(stream)
    plain = Training(base, "cuda")
    plain.model.load_state_dict(training.model.state_dict())
    plain.sam.load_state_dict(copy.deepcopy(training.sam.state_dict()))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.step()
    for _ in range(REPLAYS):
        graph.replay()
        plain.step()
    found, expected = (nn.utils.parameters_to_vector(one.model.parameters()) for one in (training, plain))
    error = float((found - expected).norm() / expected.norm())
    # written so that a NaN is found; products may be summed in another order beside a capture
    return [] if error <= 1e-5 else [f"a captured SAM training step with {base} is off by {error:.1e} after {REPLAYS} replays"]


def waits(base: str) -> list[str]:
    """Where a training step waits for the device; needs a GPU."""
    training = Training(base, "cuda")
    for _ in range(2):
        training.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
    except RuntimeError as error:
        return [f"a SAM training step with {base} waits for the device: {str(error).splitlines()[0]}"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return []
