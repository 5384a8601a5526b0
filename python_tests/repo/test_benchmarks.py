"""Benchmarks compare like with like: peers do what their originals do, and what is wrong is not timed."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vtkernels.ops.class_attention.cases import bench_cases as class_attention_cases
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


def test_all_sides_of_swinv2_are_cosine_attention(attn):
    (case,) = (case for case in bench_cases(("swinv2_t_256",), batch=1) if case.name == "swinv2_t_256/stage3/shift4")
    problem = type(attn.problem)(case, torch.float32, "cpu")
    gated = attn.sides.gate(problem, "training", ["eager", "timm_sdpa", "sdpa"], medium=False, backend="reference")
    assert (gated.refused, len(gated.sides)) == ({}, 4)
    cosine, problem.logit_scale = problem.attend(problem.qkv, problem.table, "reference"), None
    assert not torch.allclose(cosine, problem.attend(problem.qkv, problem.table, "reference"), atol=0.1)


def test_a_wrong_side_is_not_timed(attn, monkeypatch):
    def forgets_the_mask(problem, phase):
        frame = attn.peers.Frame(problem)
        return lambda x, qkv, table: (frame.enter(x), frame.leave(frame.attend(qkv, table, None)))

    monkeypatch.setitem(attn.peers.PEERS, "eager", forgets_the_mask)
    gated = attn.sides.gate(attn.problem, "forward", ["eager"], medium=False, backend="reference")
    assert gated.refused["eager"].startswith("Wrong: out is off by")
    assert [side.name for side in gated.sides] == ["vtkernels"]


def test_shares_are_of_the_best_limits_that_were_seen(attn, monkeypatch, tmp_path):
    import attn as script

    # before the first row, after it, and after the second
    rates = iter([1e9, 5e9, 2e9])
    monkeypatch.setattr(script.machine_peaks, "measure", lambda device: script.machine_peaks.Peaks(rate := next(rates), {"float32": rate}, "made up"))
    arguments = ["--only", "stage4/shift0", "--batch", "1", "--quick", "--rounds", "1", "--threads", "1", "--peers", "eager", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["attn.py", *arguments])
    monkeypatch.setattr(script, "cases", lambda options, cases=script.cases: cases(options)[:1])
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*/attn_*.json")
    result = json.loads(path.read_text())
    assert result["peaks"]["GFLOPs"]["float32"] == result["peaks"]["copy_GBps"] == 5
    assert len(result["rows"]) == 2
    for row in result["rows"]:
        # files keep five digits
        assert row["share_of_peak"] == pytest.approx(row["GFLOPs"] / 5, rel=1e-4)
        assert row["share_of_copy"] == pytest.approx(row["GBps"] / 5, rel=1e-4)


@pytest.fixture
def sam(monkeypatch):
    """The modules of `sam.py`, and problems small enough for a test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import sam
    import sam_problem
    import sam_sides
    from peers import sam as peers

    def problem(base: str, dtype: torch.dtype = torch.float32) -> sam_problem.Problem:
        return sam_problem.Problem("tiny", sam_problem.MODELS["tiny"](), sam_problem.BASES[base], dtype, "cpu")

    return SimpleNamespace(script=sam, problems=sam_problem, sides=sam_sides, peers=peers, problem=problem)


@pytest.mark.parametrize(
    ("name", "timms", "tensors", "millions"),
    [
        ("vit_s", "vit_small_patch16_224", 152, 22.05),
        ("vit_b", "vit_base_patch16_224", 152, 86.57),
        ("swin_t", "swin_tiny_patch4_window7_224", 173, 28.29),
        ("resnet50", "resnet50", 161, 25.56),
    ],
)
def test_lists_are_timms(sam, timm_swin, name, timms, tensors, millions):
    import timm

    with torch.device("meta"):
        expected = [tuple(p.shape) for p in timm.create_model(timms).parameters()]
    shapes = sam.problems.MODELS[name]()
    assert shapes == expected
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_byte_floor_is_ten_streams_and_with_adamw_twelve(sam):
    assert {name: base.streams for name, base in sam.problems.BASES.items()} == {"sgd": 10, "adamw": 12}
    problem = sam.problem("sgd", torch.bfloat16)
    assert problem.bytes == 20 * problem.numel


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_the_truth_of_sam_steps_is_the_published_loop_in_double_precision(sam, base):
    problem = sam.problem(base, torch.float64)
    side = sam.peers.Published(problem)
    with torch.no_grad():
        side.first()
        for p, true in zip(side.params, problem.perturbed(), strict=True):
            torch.testing.assert_close(p.detach(), true, rtol=1e-12, atol=1e-12)
        side.second()
        side.step()
    for p, true in zip(side.params, problem.stepped(2), strict=True):
        torch.testing.assert_close(p.detach(), true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_every_eager_sam_step_passes_the_gate(sam, base, dtype):
    # torch's fused SGD leaves most half-precision weights alone on a CPU: pytorch/pytorch#191763
    names = [name for name in sam.peers.PEERS if name != "inductor" and not (base == "sgd" and dtype == torch.bfloat16 and "fused" in name)]
    gated = sam.sides.gate(sam.problem(base, dtype), names, backend="reference")
    gated.refused.pop(sam.sides.PLAIN, None)
    assert gated.refused == {}
    assert {"vtkernels", "vtkernels.SAM", *names} <= {side.name for side in gated.sides}


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_the_compiled_sam_step_passes_the_gate_and_is_compiled_once(sam, base, fresh_compiler):
    problem = sam.problem(base)
    (side,) = (side for side in sam.sides.gate(problem, ["inductor"], backend="reference").sides if side.name == "inductor")
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        side.run()


def forgets_to_return(side):
    side.optimizer.step()


def decays_the_climbed_weights(side):
    for p, old in zip(side.params, side.backups, strict=True):
        p.grad = side.problem.second[0].new_zeros(()) + p.grad + side.problem.base.settings["weight_decay"] * (p - old)
        p.copy_(old)
    side.optimizer.step()
    for p, g in zip(side.params, side.problem.second, strict=True):
        p.grad = g


@pytest.mark.parametrize("second", [forgets_to_return, decays_the_climbed_weights])
def test_a_wrong_sam_step_is_not_timed(sam, monkeypatch, second):
    monkeypatch.setattr(sam.peers.Foreach, "second", second)
    gated = sam.sides.gate(sam.problem("sgd"), ["foreach", "published"], backend="reference")
    assert gated.refused["foreach"].startswith("Wrong: after 2 steps: tensor")
    assert "foreach" not in [side.name for side in gated.sides]
    assert "published" in [side.name for side in gated.sides]


def test_our_sam_step_must_bring_back_every_bit_in_its_place(sam, monkeypatch):
    ours, climb, step = sam.sides.Ours, sam.sides.Ours.first, sam.sides.Ours.second

    def subtracts(side):
        # instead of the copy: right but for rounding
        for backup, p, g in zip(side.backups, side.params, side.problem.first, strict=True):
            backup.copy_(p - side.problem.rho / side.problem.norm() * g)
        step(side)

    def moves(side):
        step(side)
        side.params = [p.clone() for p in side.params]

    def stays(side):
        climb(side)
        for p, backup in zip(side.params, side.backups, strict=True):
            p.copy_(backup)

    def refused() -> str:
        return sam.sides.gate(sam.problem("sgd"), [], backend="reference").refused["vtkernels"]

    monkeypatch.setattr(ours, "second", subtracts)
    assert "did not come back to the bit" in refused()
    monkeypatch.setattr(ours, "second", moves)
    assert "lies elsewhere after the step" in refused()
    monkeypatch.setattr(ours, "second", step)
    monkeypatch.setattr(ours, "first", stays)
    assert "the first pass moved nothing" in refused()


def test_the_sam_script_runs_and_counts_one_copy(sam, monkeypatch, tmp_path, capsys):
    arguments = ["--model", "tiny", "--quick", "--rounds", "1", "--threads", "1", "--peers", "published", "--memory", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["sam.py", *arguments])
    try:
        sam.script.main()
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "not timed" not in printed
    (path,) = tmp_path.glob("*/sam_tiny_float32_1t_quick.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["phase"] for row in rows] == ["sgd", "adamw"]
    for row in rows:
        assert set(row["ms"]) >= {"vtkernels", "vtkernels.SAM", "published", "plain", "control"}
        assert row["ours"]["fastest"]["name"] == "published"
        # the backup; beside it a handful of numbers
        assert row["extra_bytes_per_parameter"]["vtkernels"] == pytest.approx(4.0, abs=0.05)
        assert row["extra_bytes_per_parameter"]["vtkernels.SAM"] == pytest.approx(4.0, abs=0.05)


@pytest.fixture
def drloc(monkeypatch):
    """The script of the pairs, and a problem small enough for a test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import drloc as script
    from peers import drloc as peers

    from vtkernels.ops.drloc_pairs.cases import _bench_case

    return SimpleNamespace(script=script, peers=peers, problem=script.Problem(_bench_case(8, 20, 5, 16), torch.float32, "cpu"))


@pytest.mark.parametrize("phase", ["forward", "training"])
def test_every_eager_way_to_get_pairs_passes_the_gate(drloc, phase):
    names = [name for name in drloc.peers.PEERS if not name.endswith("_inductor")]
    gated = drloc.script.gate(drloc.problem, phase, names, backend="reference")
    assert gated.refused == {}
    assert [side.name for side in gated.sides] == ["vtkernels", *names]


def test_wrong_pairs_are_not_timed(drloc, monkeypatch):
    right = drloc.peers.gather

    def swaps_rows_and_columns(features, pairs):
        found, targets, positions = right(features, pairs)
        return found, targets, tuple(points.flip(-1) for points in positions)

    def detaches_the_second(features, pairs):
        found, targets, positions = right(features, pairs)
        first, second = found.chunk(2, -1)
        return torch.cat([first, second.detach()], -1), targets, positions

    def counts(features, pairs):
        found, targets, positions = right(features, pairs)
        return found, 5 * targets, positions

    def draws_no_last_row(features, pairs):
        found, targets, positions = right(features[:, :-1], pairs)
        return found, targets * (features.new_tensor([features.shape[1] - 1, 1]) / features.new_tensor([features.shape[1], 1])), positions

    def refused(peer, phase: str = "forward") -> str:
        monkeypatch.setitem(drloc.script.PEERS, "wrong", lambda: peer)
        return drloc.script.gate(drloc.problem, phase, ["wrong"], backend="reference").refused["wrong"]

    assert refused(swaps_rows_and_columns).startswith("Wrong: pairs are not the features")
    assert refused(counts).startswith("Wrong: targets are not the distances")
    assert refused(draws_no_last_row).startswith("Wrong: some rows or columns are never drawn")
    assert refused(detaches_the_second, "training").startswith("Wrong: the gradient is off by")


@pytest.fixture
def class_attn(monkeypatch):
    """The modules of `class_attn.py`, which lie beside it, and CaiT-XXS24's class attention."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import class_attn_problem
    from peers import class_attention as peers

    (case,) = class_attention_cases(("cait_xxs24",), batch=2, token_counts=(17,))
    return SimpleNamespace(problem=class_attn_problem.Problem(case, torch.float32), gate=class_attn_problem.gate, peers=peers)


@pytest.mark.parametrize(("peer", "fused"), [("timm", False), ("timm_sdpa", True)])
def test_timms_class_attention_peers_are_timms_module_to_the_bit(class_attn, timm_cait, peer, fused):
    problem = class_attn.problem
    module = timm_cait.ClassAttn(192, num_heads=4, qkv_bias=True)
    module.fused_attn = fused
    module.load_state_dict({name: value.detach() for name, value in problem.parameters.items()})
    with torch.no_grad():
        assert torch.equal(class_attn.peers.PEERS[peer](4)(problem.x, problem.parameters), module(problem.x)[:, 0])


@pytest.mark.parametrize("phase", ["forward", "training"])
def test_every_eager_class_attention_peer_passes_the_gate(class_attn, phase):
    gated = class_attn.gate(class_attn.problem, phase, ["timm", "timm_sdpa", "folded"], medium=False)
    assert gated.refused == {}
    assert [side.name for side in gated.sides] == ["vtkernels", "timm", "timm_sdpa", "folded"]


def test_class_attention_that_forgets_a_bias_is_not_timed(class_attn, monkeypatch):
    def forgets(heads):
        return lambda x, parameters: class_attn.peers.timm(heads)(x, parameters | {"v.bias": torch.zeros_like(parameters["v.bias"])})

    monkeypatch.setitem(class_attn.peers.PEERS, "timm", forgets)
    gated = class_attn.gate(class_attn.problem, "forward", ["timm"], medium=False)
    assert [side.name for side in gated.sides] == ["vtkernels"] and "is off by" in gated.refused["timm"]
