"""Benchmarks compare like with like: peers do what their originals do, and what is wrong is not timed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vtkernels.ops.window_attention.cases import bench_cases

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def attn(monkeypatch):
    """The modules of `attn.py`, which lie beside it, and Swin-T's shifted third stage."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import attn_problem
    import attn_sides
    from peers import window_attention as peers

    (case,) = (case for case in bench_cases(("swin_t",), batch=1) if case.name == "swin_t/stage3/shift3")
    return SimpleNamespace(sides=attn_sides, peers=peers, problem=attn_problem.Problem(case, torch.float32, "cpu"))


class Given(torch.nn.Module):
    """In the place of a projection: whatever comes in, this comes out."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value


@pytest.mark.parametrize(("peer", "fused"), [("timm", False), ("timm_sdpa", True)])
def test_timms_peers_are_timms_block_to_the_bit(attn, timm_swin, peer, fused):
    problem, shape = attn.problem, attn.problem.shape
    block = timm_swin.SwinTransformerBlock(shape.channels, (shape.size, shape.size), shape.heads, window_size=shape.window, shift_size=shape.shift)
    block.attn.fused_attn = fused
    block.attn.qkv, block.attn.proj = Given(problem.qkv_windows), torch.nn.Identity()
    block.attn.relative_position_bias_table = problem.table
    with torch.no_grad():
        _, out = attn.peers.PEERS[peer](problem, "forward")(problem.x, problem.qkv_windows, problem.table)
        assert torch.equal(out, block.eval()._attn(problem.x))


@pytest.mark.parametrize("phase", ["forward", "training"])
def test_every_eager_peer_passes_the_gate(attn, phase):
    gated = attn.sides.gate(attn.problem, phase, ["eager", "timm", "timm_sdpa", "torchvision", "sdpa"], medium=False, backend="reference")
    assert gated.refused == {}
    assert len(gated.sides) == 6


def test_a_wrong_side_is_not_timed(attn, monkeypatch):
    def forgets_the_mask(problem, phase):
        frame = attn.peers.Frame(problem)
        return lambda x, qkv, table: (frame.enter(x), frame.leave(frame.attend(qkv, table, None)))

    monkeypatch.setitem(attn.peers.PEERS, "eager", forgets_the_mask)
    gated = attn.sides.gate(attn.problem, "forward", ["eager"], medium=False, backend="reference")
    assert gated.refused["eager"].startswith("Wrong: out is off by")
    assert [side.name for side in gated.sides] == ["vtkernels"]
