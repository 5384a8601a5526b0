"""Randomly wired networks: each stage a random graph, whose nodes are separable convolutions.

Xie et al., "Exploring Randomly Wired Neural Networks for Image Recognition", 2019.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import SeparableConv2d
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register

# pairs (from, to) with from < to, sorted
Edges = list[tuple[int, int]]
GRAPHS = ("ws", "er", "ba")


@dataclass(frozen=True, kw_only=True)
class RandomWiredConfig(Config):
    """A randomly wired network. It has no residual branches: `drop_path` does nothing.

    Attributes:
        channels: of the first random stage; each further one doubles them.
        nodes: of a graph.
        regular: four random stages after one convolution, the first of half as many nodes, instead of three after two convolutions.
        graph: "ws" (Watts and Strogatz), "er" (Erdos and Renyi) or "ba" (Barabasi and Albert).
        degree: neighbours of a node in the ring that "ws" starts from.
        probability: of an edge being rewired ("ws") or existing ("er").
        attachments: edges that each node brings ("ba").
        seed: fixes all graphs.
        head: channels of the last convolution.
    """

    channels: int = 78
    nodes: int = 32
    regular: bool = False
    graph: str = "ws"
    degree: int = 4
    probability: float = 0.75
    attachments: int = 5
    seed: int = 0
    head: int = 1280

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(nodes, channels) of each random stage."""
        first = self.nodes // 2 if self.regular else self.nodes
        return [(self.nodes if stage else first, self.channels * 2**stage) for stage in range(4 if self.regular else 3)]

    def draw(self, nodes: int, random: Random) -> Edges:
        if self.graph == "ws":
            return watts_strogatz(nodes, self.degree, self.probability, random)
        if self.graph == "er":
            return erdos_renyi(nodes, self.probability, random)
        return barabasi_albert(nodes, self.attachments, random)


# graphs; only Random.random is used, whose sequence no version of Python changes


def watts_strogatz(nodes: int, degree: int, probability: float, random: Random) -> Edges:
    """A ring whose nodes know `degree` neighbours; then, in a pass for each distance, clockwise edges get another end with `probability`."""
    neighbours = [{(node + offset) % nodes for half in range(1, degree // 2 + 1) for offset in (half, -half)} for node in range(nodes)]
    for distance in range(1, degree // 2 + 1):
        for node in range(nodes):
            end = (node + distance) % nodes
            free = [other for other in range(nodes) if other != node and other not in neighbours[node]]
            if random.random() < probability and free:
                new = free[int(random.random() * len(free))]
                neighbours[node].remove(end)
                neighbours[end].remove(node)
                neighbours[node].add(new)
                neighbours[new].add(node)
    return sorted((node, other) for node in range(nodes) for other in neighbours[node] if node < other)


def erdos_renyi(nodes: int, probability: float, random: Random) -> Edges:
    """Each pair is joined with `probability`."""
    return [(node, other) for node in range(nodes) for other in range(node + 1, nodes) if random.random() < probability]


def barabasi_albert(nodes: int, attachments: int, random: Random) -> Edges:
    """Nodes come one by one after the first `attachments`, and join as many others, likelier those with many edges."""
    edges: Edges = []
    targets = set(range(attachments))
    # every node as often as it has edges
    ends: list[int] = []
    for node in range(attachments, nodes):
        edges += [(target, node) for target in targets]
        ends += [*sorted(targets), *[node] * attachments]
        targets = set()
        while len(targets) < attachments:
            targets.add(ends[int(random.random() * len(ends))])
    return sorted(edges)


class Node(nn.Module):
    """Norm(separable convolution(ReLU(inputs, weighed in (0, 1) and added)))."""

    def __init__(self, dim: int, out: int, inputs: int, stride: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(inputs)) if inputs > 1 else None
        self.conv = SeparableConv2d(dim, out, 3, stride)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        x = inputs[0]
        if self.weights is not None:
            factors = self.weights.sigmoid().unbind()
            x = sum(factor * value for factor, value in zip(factors, inputs, strict=True))
        return self.bn(self.conv(F.relu(x)))


class RandomStage(nn.Module):
    """A graph of nodes at half the resolution: those without an edge to them read the input, those without one from them are averaged."""

    def __init__(self, dim: int, out: int, nodes: int, edges: Edges):
        super().__init__()
        self.sources = [[source for source, target in edges if target == node] for node in range(nodes)]
        self.ends = sorted(set(range(nodes)) - {source for source, _ in edges})
        self.nodes = nn.ModuleList(Node(out, out, len(sources), 1) if sources else Node(dim, out, 1, 2) for sources in self.sources)
        # beside the weights, for they mean nothing in another graph
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.int64).reshape(-1, 2))

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for node, sources in zip(self.nodes, self.sources, strict=True):
            outputs.append(node([outputs[source] for source in sources] if sources else [x]))
        return sum(outputs[node] for node in self.ends) / len(self.ends)


class RandomWired(ConvNet):
    classifiers = ("classifier",)

    def __init__(self, config: RandomWiredConfig):
        super().__init__(config)
        _check(config)
        dim = config.channels // 2
        self.conv1 = nn.Conv2d(config.in_channels, dim, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        if not config.regular:
            self.conv2 = nn.Conv2d(dim, config.channels, 3, 2, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(config.channels)
            dim = config.channels
        random = Random(config.seed)
        self.stages = nn.ModuleList()
        for nodes, out in config.stages:
            self.stages.append(RandomStage(dim, out, nodes, config.draw(nodes, random)))
            dim = out
        self.conv_head = nn.Conv2d(dim, config.head, 1, bias=False)
        self.bn_head = nn.BatchNorm2d(config.head)
        self.classifier = self.new_classifier(config.head)
        self.initialise(per_group=True)

    def _features(self, x: Tensor) -> Tensor:
        return self.bn_head(self.conv_head(F.relu(super()._features(x))))

    def _maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self.bn1(self.conv1(x)), []
        if not self.config.regular:
            x = self.bn2(self.conv2(F.relu(x)))
        for stage in self.stages:
            x = self.run(stage, x)
            maps.append(x)
        return maps

    @property
    def maps_info(self) -> list[MapInfo]:
        first = 4 if self.config.regular else 8
        return [MapInfo(channels, first * 2**stage) for stage, (_, channels) in enumerate(self.config.stages)]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.conv_head, self.bn_head = nn.Identity(), nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(".weights")}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        nodes = [(f"stages.{index}.nodes.{node}",) for index, stage in enumerate(self.stages) for node in range(len(stage.nodes))]
        return [("conv1", "bn1"), ("conv2", "bn2"), *nodes, ("conv_head", "bn_head", "classifier")]

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        for index, stage in enumerate(self.stages):
            edges = state.get(f"stages.{index}.edges")
            if edges is not None and edges.tolist() != stage.edges.tolist():
                hint = f"create the model with the graph and seed of the checkpoint; this one has graph={self.config.graph!r}, seed={self.config.seed}"
                check.fail("RandomWired", f"checkpoint's stage {index}", f"have this model's {len(stage.edges)} edges", f"{len(edges)} others", hint)
        return []


def _check(config: RandomWiredConfig) -> None:
    name = "RandomWiredConfig"
    least = min(nodes for nodes, _ in config.stages)
    if config.graph not in GRAPHS:
        check.fail(name, "graph", f"be one of {', '.join(GRAPHS)}", repr(config.graph))
    if config.nodes < 2 or config.channels < 2:
        check.fail(name, "nodes and channels", "be at least 2", (config.nodes, config.channels))
    if config.graph == "ws" and (config.degree % 2 or not 2 <= config.degree < least):
        check.fail(name, "degree", f"be even and less than the {least} nodes of a stage", config.degree)
    if config.graph != "ba" and not 0 <= config.probability <= 1:
        check.fail(name, "probability", "be in [0, 1]", config.probability, "the paper has 0.75 for ws and 0.2 for er")
    if config.graph == "ba" and not 1 <= config.attachments < least:
        check.fail(name, "attachments", f"be positive and less than the {least} nodes of a stage", config.attachments)


def _variant(parameters: int, gmacs: float | None = None, top1: float | None = None, source: str = "arXiv:1904.01569", **fields: object) -> Variant:
    return Variant(RandomWiredConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source))


ER = {"graph": "er", "probability": 0.2}
BA = {"graph": "ba"}

# parameters are those of the graphs of seed 0, accuracies the paper's means over other graphs of the same kind
register(
    RandomWired,
    {
        "randwire_nano": _variant(78_532, source="for tests and demonstrations", img_size=32, channels=8, nodes=6, head=64),
        "randwire_ws_c78": _variant(5_651_918, 0.583, 74.7),
        "randwire_er_c78": _variant(5_816_546, **ER),
        "randwire_ba_c78": _variant(5_677_900, **BA),
        "randwire_ws_c109": _variant(32_341_207, 4.0, 79.0, channels=109, regular=True),
        "randwire_er_c109": _variant(34_154_607, channels=109, regular=True, **ER),
        "randwire_ba_c109": _variant(32_522_511, channels=109, regular=True, **BA),
        "randwire_ws_c154": _variant(62_325_506, 7.9, 80.1, channels=154, regular=True),
    },
)
