"""Randomly wired networks: properties of the graphs, the networks against their definition, the parameters that were published."""

from random import Random

import pytest
import torch
from models.test_resnet import stirred
from models.zoo import images, nano
from torch.nn import functional as F

from vtkernels.models import create_model
from vtkernels.models.random_wired import barabasi_albert, erdos_renyi, watts_strogatz


def degrees(edges, nodes):
    return [sum(node in edge for edge in edges) for node in range(nodes)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "draw",
    [lambda random: watts_strogatz(32, 4, 0.75, random), lambda random: erdos_renyi(32, 0.2, random), lambda random: barabasi_albert(32, 5, random)],
    ids=["ws", "er", "ba"],
)
def test_graphs_are_simple_directed_upwards_and_repeatable(draw, seed):
    edges = draw(Random(seed))
    assert edges == sorted(set(edges)) and all(0 <= source < target < 32 for source, target in edges)
    assert edges == draw(Random(seed)) and edges != draw(Random(seed + 1))


def test_watts_strogatz():
    # without rewiring it is the ring, in which each node knows two on each side
    ring = watts_strogatz(8, 4, 0.0, Random(0))
    assert set(ring) == {tuple(sorted((node, (node + offset) % 8))) for node in range(8) for offset in (1, 2)}
    for seed in range(10):
        edges = watts_strogatz(32, 4, 0.75, Random(seed))
        # rewiring keeps the number of edges, and each node the two that it started clockwise, wherever they lead now
        assert len(edges) == 64 and min(degrees(edges, 32)) >= 2
    moved = [len(set(watts_strogatz(100, 4, 0.25, Random(seed))) - set(watts_strogatz(100, 4, 0.0, Random(0)))) for seed in range(20)]
    # an edge may by chance be put where another was taken away
    assert sum(moved) / (20 * 200) == pytest.approx(0.25, abs=0.02)
    # a complete graph has no other end to give
    assert len(watts_strogatz(5, 4, 1.0, Random(0))) == 10


def test_erdos_renyi():
    counts = [len(erdos_renyi(32, 0.2, Random(seed))) for seed in range(50)]
    assert sum(counts) / 50 == pytest.approx(0.2 * 32 * 31 / 2, rel=0.05)
    assert erdos_renyi(6, 0.0, Random(0)) == [] and len(erdos_renyi(6, 1.0, Random(0))) == 15


def test_barabasi_albert():
    found = [barabasi_albert(32, 5, Random(seed)) for seed in range(20)]
    assert all(len(edges) == 5 * 27 for edges in found)
    # the first to come joins all before it, and early nodes end with more edges than late ones
    assert all({(node, 5) for node in range(5)} <= set(edges) for edges in found)
    totals = [sum(degrees(edges, 32)[node] for edges in found) for node in range(32)]
    assert sum(totals[:8]) > 2 * sum(totals[-8:])


def literal(model, x):
    state = model.state_dict()

    def conv(x, name, stride=1, padding=0, groups=1):
        return F.conv2d(x, state[f"{name}.weight"], None, stride, padding, groups=groups)

    def bn(x, name):
        mean, variance, weight, bias = (state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = bn(conv(x, "conv1", 2, 1), "bn1")
    if "conv2.weight" in state:
        x = bn(conv(x.relu(), "conv2", 2, 1), "bn2")
    for stage in range(len(model.stages)):
        edges = state[f"stages.{stage}.edges"].tolist()
        nodes, outputs = len(model.stages[stage].nodes), {}
        for node in range(nodes):
            name = f"stages.{stage}.nodes.{node}"
            sources = [source for source, target in edges if target == node]
            if len(sources) > 1:
                y = sum(state[f"{name}.weights"][index].sigmoid() * outputs[source] for index, source in enumerate(sources))
            else:
                y = outputs[sources[0]] if sources else x
            y = conv(y.relu(), f"{name}.conv.depthwise_conv2d", 1 if sources else 2, 1, y.shape[1])
            outputs[node] = bn(conv(y, f"{name}.conv.pointwise_conv2d"), f"{name}.bn")
        x = torch.stack([outputs[node] for node in range(nodes) if node not in {source for source, _ in edges}]).mean(0)
    x = bn(conv(x.relu(), "conv_head"), "bn_head").mean((2, 3))
    return x @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"graph": "er", "probability": 0.2},
        {"graph": "ba", "attachments": 2, "regular": True},
        # nodes that know no other read the input and are part of the output
        {"graph": "er", "probability": 0.0},
    ],
    ids=["ws", "er", "ba", "isolated"],
)
def test_definition(options):
    model = stirred(nano("randwire_nano", nodes=12, **options)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".weights"):
                parameter.normal_()
    x = images(2, (32, 64), dtype=torch.float64)
    torch.testing.assert_close(model(x), literal(model, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "mean", "spread", "seeds"),
    [("randwire_ws_c78", 5.615e6, 0.077e6, 12), ("randwire_ws_c109", 32.4e6, 0.8e6, 4), ("randwire_ws_c154", 62.4e6, 1.6e6, 4)],
    ids=["c78", "c109", "c154"],
)
def test_published_parameters(name, mean, spread, seeds):
    with torch.device("meta"):
        counts = [sum(parameter.numel() for parameter in create_model(name, seed=seed).parameters()) for seed in range(seeds)]
    assert abs(sum(counts) / seeds - mean) < 3 * spread / seeds**0.5


def test_parameters_of_a_node():
    for node in nano("randwire_nano", nodes=12).stages[1].nodes:
        dim, out = node.conv.depthwise_conv2d.in_channels, node.bn.num_features
        inputs = 0 if node.weights is None else len(node.weights)
        assert inputs != 1 and sum(parameter.numel() for parameter in node.parameters()) == 9 * dim + dim * out + 2 * out + inputs
        assert dim == (8 if node.conv.depthwise_conv2d.stride == (2, 2) else 16) and (node.weights is None or (node.weights == 0).all())


def test_weights_of_another_graph_are_refused(tmp_path):
    torch.save(nano("randwire_nano").state_dict(), tmp_path / "weights.pth")
    assert create_model("randwire_nano", num_classes=10, checkpoint=tmp_path / "weights.pth").load_report.complete
    with pytest.raises(ValueError, match="checkpoint's stage 0 must have this model's 12 edges, got 12 others; create the model with the graph and seed"):
        create_model("randwire_nano", num_classes=10, seed=1, checkpoint=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "tree"}, "graph must be one of ws, er, ba, got 'tree'"),
        ({"degree": 3}, "degree must be even and less than the 6 nodes of a stage, got 3"),
        ({"degree": 4, "regular": True}, "degree must be even and less than the 3 nodes of a stage, got 4"),
        ({"graph": "er", "probability": 1.5}, r"probability must be in \[0, 1\], got 1.5"),
        ({"graph": "ba", "attachments": 6}, "attachments must be positive and less than the 6 nodes of a stage, got 6"),
        ({"nodes": 1}, r"nodes and channels must be at least 2, got \(1, 8\)"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("randwire_nano", **options)
