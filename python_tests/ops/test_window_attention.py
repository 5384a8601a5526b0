"""Window attention's own truths: golden numbers, peers, properties, refusals. The contract is in test_contract.py."""

import math

import pytest
import torch
from oracles import assert_close
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import vtkernels as vt
from vtkernels._core import testing
from vtkernels._core.philox import philox
from vtkernels.ops.window_attention import reference
from vtkernels.ops.window_attention.cases import cases
from vtkernels.ops.window_attention.op import OP

every_backend = pytest.mark.parametrize("backend", OP.backend_names)
GOLDEN_TABLE_GRADIENT = [
    [0.538930518671, 0.238564216323],
    [0.856396369741, 1.858941734095],
    [-1.079015190469, -1.253432497131],
    [-1.446848559567, -0.120903132611],
    [-0.185143825901, -0.076949176641],
    [0.914716873742, -1.001551163835],
    [0.016997302816, -0.407469644973],
    [0.469770379479, 0.912630749915],
    [-0.085803868512, -0.149831085143],
]


def call_for(size, window, shift=0, **options):
    """A call on a map of one image and head, for what depends on geometry alone."""
    return testing.call_of(
        OP.name, {"qkv": torch.zeros(1, *size, 24, dtype=torch.float64), "num_heads": 1, "window_size": window, "shift_size": shift, **options}
    )


def skip_unless_it_runs(backend, inputs):
    reason = testing.why_not(OP.name, inputs, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


# golden numbers


def test_relative_index():
    assert reference.relative_index((2, 2)).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    index = reference.relative_index((7, 7))
    assert int(index.sum()) == 201_684
    assert int(reference.relative_index((4, 4)).sum()) == 6_144
    assert index.diagonal().unique().tolist() == [84]
    assert (int(index[0, 48]), int(index[48, 0])) == (0, 168)
    assert index[0, :8].tolist() == [84, 83, 82, 81, 80, 79, 78, 71]


def test_relative_index_counts_each_row_as_often_as_its_offset_occurs():
    rows, columns = 3, 5
    counts = reference.relative_index((rows, columns)).flatten().bincount(minlength=(2 * rows - 1) * (2 * columns - 1))
    expected = [(rows - abs(dy)) * (columns - abs(dx)) for dy in range(1 - rows, rows) for dx in range(1 - columns, columns)]
    assert counts.tolist() == expected


@pytest.mark.parametrize(("size", "window", "shift", "counts"), [((4, 6), 2, 1, [0, 0, 8, 8, 8, 12]), ((8, 8), 4, 2, [0, 128, 128, 192])])
def test_masked_pairs_per_window(size, window, shift, counts):
    mask = reference.additive_mask(call_for(size, window, shift))
    assert set(mask.unique().tolist()) == {-100.0, 0.0}
    assert (mask == -100).sum((1, 2, 3)).tolist() == counts


def test_mask_of_swins_first_stage():
    mask = reference.additive_mask(call_for((56, 56), 7, 3))
    masked = (mask != 0).flatten(1).any(1).nonzero().flatten().tolist()
    assert masked == [w for w in range(64) if w % 8 == 7 or w >= 56]
    assert float((mask != 0).double().mean()) == pytest.approx(0.1187, abs=5e-5)


def test_no_shift_no_mask():
    assert reference.additive_mask(call_for((8, 8), 4)) is None


def golden_inputs(dtype):
    qkv = torch.sin(0.37 * torch.arange(2 * 4 * 6 * 12, dtype=torch.float64) + 0.11).view(2, 4, 6, 12)
    table = torch.cos(0.5 * torch.arange(18, dtype=torch.float64)).view(9, 2)
    return {"qkv": qkv.to(dtype), "bias_table": table.to(dtype), "num_heads": 2, "window_size": 2, "shift_size": 1, "scale": 2**-0.5}


def test_golden_case():
    upstream = torch.cos(0.2 * torch.arange(2 * 4 * 6 * 4, dtype=torch.float64)).view(2, 4, 6, 4)
    found = testing.run_case(OP.name, golden_inputs(torch.float64), "reference", (upstream,))
    out = found["output"]
    assert out[0, 0, 0].tolist() == pytest.approx([0.0715315111408437, -0.2939983124155676, -0.6197368435949633, -0.861596900310741], abs=1e-12)
    assert out[1, 3, 5].tolist() == pytest.approx([-0.9530919934187202, -0.9980477678560784, -0.907922458967847, -0.6949141045151116], abs=1e-12)
    assert float(out.sum()) == pytest.approx(-3.2113745676679546, abs=1e-12)
    assert float(out.square().sum()) == pytest.approx(46.413018150657166, abs=1e-12)
    assert float(found["gradient of qkv"].square().sum()) == pytest.approx(81.08403224917275, abs=1e-11)
    # the spec gives twelve digits after the point
    table_gradient = torch.tensor(GOLDEN_TABLE_GRADIENT, dtype=torch.float64)
    assert_close(found["gradient of bias_table"], table_gradient, 1e-12, "gradient of bias_table")
    assert table_gradient.sum(0).abs().max() < 1e-11, "each column of a table's gradient sums to 0"


@pytest.mark.parametrize(
    ("seed", "counter", "words"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, 2**32 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(seed, counter, words):
    assert tuple(int(word) for word in philox(seed, *[torch.tensor(counter)] * 4)) == words


def philox_word(seed: int, counter: list[int]) -> int:
    """Word 0 of Philox4x32-10 in Python's integers, as its paper states it."""
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [second >> 32 ^ counter[1] ^ key[0], second & 0xFFFFFFFF, first >> 32 ^ counter[3] ^ key[1], first & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter[0]


@every_backend
def test_dropout_drops_what_philox_says(backend):
    """Equal scores and v = identity: the output shows which weights were kept. Counter: (i N + j, item), item = (image, window, head)."""
    batch, heads, tokens, p, seed = 2, 3, 16, 0.25, 2**45 + 9
    qkv = torch.zeros(batch, 4, 8, 3, heads, tokens)
    for x in range(8):
        for y in range(4):
            qkv[:, y, x, 2, :, 4 * y + x % 4] = 1.0
    inputs = {"qkv": qkv.flatten(3), "num_heads": heads, "window_size": 4, "dropout_p": p, "seed": seed}
    skip_unless_it_runs(backend, inputs)
    out = OP.public(**inputs, backend=backend).view(batch, 4, 2, 4, heads, tokens).permute(0, 2, 4, 1, 3, 5).reshape(-1, tokens, tokens)
    threshold = round((1 - p) * 2**32)
    for item in range(batch * 2 * heads):
        kept = [[philox_word(seed, [i * tokens + j, item, 0, 0]) < threshold for j in range(tokens)] for i in range(tokens)]
        assert_close(out[item], torch.tensor(kept) / (tokens * (1 - p)), 1e-6, f"item {item}")


@every_backend
def test_dropout_compares_in_full_precision(backend):
    """With this seed one word lies between the thresholds of 0.9 and of 0.9 in single precision."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 32, 32, 3 * 3 * 8, generator=generator)
    inputs = {"qkv": qkv, "num_heads": 3, "window_size": 32, "dropout_p": 0.9, "seed": 6}
    skip_unless_it_runs(backend, inputs)
    head, query = 2, 614304 // 1024
    expected = OP.public(**inputs, backend="reference").view(1024, 3, 8)[query, head]
    assert_close(OP.public(**inputs, backend=backend).view(1024, 3, 8)[query, head], expected, 1e-5, "the query whose weight is dropped")


# the formula


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_formula_of_the_backward_is_autograd_through_the_forward(case):
    inputs = testing.in_dtype(case.inputs(torch.float64), torch.float64)
    found = testing.run_case(OP.name, inputs, "reference")
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    out = reference.attend(testing.call_of(OP.name, {**inputs, **leaves}))
    assert_close(found["output"], out, 1e-12, "output")
    grads = torch.autograd.grad(out, list(leaves.values()), testing.upstream_for((out,)), materialize_grads=True)
    for name, grad in zip(leaves, grads, strict=True):
        assert_close(found[f"gradient of {name}"], grad, 1e-12, f"gradient of {name}")


@pytest.mark.parametrize("window", [(4, 6), (9, 8)])
def test_one_window_is_plain_attention(window):
    heads, head_dim, tokens = 3, 8, window[0] * window[1]
    qkv = torch.randn(2, *window, 3 * heads * head_dim, dtype=torch.float64)
    bias = torch.randn(heads, tokens, tokens, dtype=torch.float64)
    q, k, v = qkv.view(2, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(2, *window, -1)
    assert_close(vt.window_attention(qkv, num_heads=heads, window_size=window, bias=bias, backend="reference"), expected, 1e-12, "output")


def test_cosine_attention_of_one_window():
    qkv = torch.randn(2, 4, 4, 3 * 16, dtype=torch.float64)
    logit_scale = torch.tensor([3.0, 9.0], dtype=torch.float64)
    q, k, v = qkv.view(2, 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
    scores = F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1) * logit_scale[:, None, None]
    expected = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 4, 4, 16)
    found = vt.window_attention(qkv, num_heads=2, window_size=4, logit_scale=logit_scale, backend="reference")
    assert_close(found, expected, 1e-12, "output")


# tracing


@pytest.mark.parametrize("window", [7, 12])
def test_one_graph_serves_every_batch_and_resolution(window, fresh_compiler):
    """Divided and ragged maps, one window and many, few tokens a window and many: nothing is compiled twice."""
    counter = CompileCounterWithBackend("aot_eager")
    table = torch.randn((2 * window - 1) ** 2, 2, requires_grad=True)
    bias = torch.randn(3 * 16, requires_grad=True)

    def function(qkv):
        return vt.window_attention(qkv, table, num_heads=2, window_size=window, shift_size=3, qkv_bias=bias)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch, height, width in ((2, 2 * window, 3 * window), (3, 17, 19), (5, window + 1, window), (4, 2 * window, 25)):
        qkv = torch.randn(batch, height, width, 3 * 16, requires_grad=True)
        for axis in range(3):
            torch._dynamo.mark_dynamic(qkv, axis)
        found = torch.autograd.grad(compiled(qkv).square().sum(), (qkv, table, bias))
        expected = torch.autograd.grad(function(qkv).square().sum(), (qkv, table, bias))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert counter.frame_count == 1


def test_exports_with_dynamic_batch_and_resolution():
    class Module(torch.nn.Module):
        def forward(self, qkv, table):
            return vt.window_attention(qkv, table, num_heads=2, window_size=7, shift_size=3)

    shapes = {"qkv": {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}, "table": None}
    table = torch.randn(169, 2)
    program = torch.export.export(Module(), (torch.randn(2, 14, 21, 48), table), dynamic_shapes=shapes)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"][0] == torch.ops.vtkernels.window_attention.default
    for shape in ((3, 7, 14, 48), (1, 10, 13, 48)):
        qkv = torch.randn(shape)
        assert torch.equal(program.module()(qkv, table), Module()(qkv, table))


def test_a_drawn_seed_follows_torchs_generator_compiled_or_not(fresh_compiler):
    qkv = torch.randn(2, 8, 8, 24)

    def function(x):
        return vt.window_attention(x, num_heads=1, window_size=4, dropout_p=0.5)

    torch.manual_seed(11)
    first, second = function(qkv), function(qkv)
    assert not torch.equal(first, second)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.manual_seed(11)
    assert torch.equal(compiled(qkv), first) and torch.equal(compiled(qkv), second)


def test_meta_tensors_have_shapes_only():
    out = vt.window_attention(torch.empty(2, 10, 13, 48, device="meta"), torch.empty(169, 2, device="meta"), num_heads=2, window_size=7)
    assert out.device.type == "meta" and out.shape == (2, 10, 13, 16)


@every_backend
def test_autocast_casts_qkv_and_leaves_the_parameters(backend):
    inputs = next(case for case in cases() if case.name == "ragged_torchvision").inputs(torch.float32)
    skip_unless_it_runs(backend, testing.in_dtype(inputs, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        found = testing.run_case(OP.name, inputs, backend)
    expected = testing.run_case(OP.name, {**inputs, "qkv": inputs["qkv"].bfloat16()}, backend)
    assert found["output"].dtype == torch.bfloat16
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name
    assert found["gradient of bias_table"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert vt.window_attention(inputs["qkv"].double(), num_heads=2, window_size=7).dtype == torch.float64


# what a backend may not do without


def test_the_cpu_runs_what_it_promises():
    """Head dimensions 8 to 256 in steps of 8, three dtypes, every case: no silent way back to the reference."""
    if vt.backends()[OP.name]["cpu"] is not None:
        pytest.skip(vt.backends()[OP.name]["cpu"])
    for case in cases():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            inputs = case.inputs(dtype)
            head_dim = inputs["qkv"].shape[3] // 3 // inputs["num_heads"]
            reason = testing.why_not(OP.name, inputs, "cpu")
            assert (reason is None) == (head_dim % 8 == 0), f"{case.name}: {reason}"


# bad input: what was expected, what came, what to try

QKV = torch.zeros(2, 8, 8, 48)
TABLE = torch.zeros(49, 2)
BAD_INPUTS = {
    "not a tensor": ({"qkv": [1.0]}, TypeError, "qkv must be a tensor", "got list"),
    "three dimensions": ({"qkv": QKV[0]}, ValueError, "qkv must have 4 dimensions [B, H, W, 3C]", "got [8, 8, 48]"),
    "integers": ({"qkv": QKV.long()}, TypeError, "qkv must have dtype", "got torch.int64"),
    "float8": ({"qkv": QKV.to(torch.float8_e4m3fn)}, TypeError, "qkv must have dtype", "got torch.float8_e4m3fn"),
    "channels no multiple of 3": ({"qkv": QKV[..., :47]}, ValueError, "last dimension must be 3 * C", "got 47"),
    "no channels": ({"qkv": QKV[..., :0]}, ValueError, "last dimension must be 3 * C", "got 0"),
    "heads that do not divide": ({"num_heads": 3}, ValueError, "C must be a multiple of num_heads=3", "got 16"),
    "no heads": ({"num_heads": 0}, ValueError, "num_heads must be a positive int", "got 0"),
    "an empty map": ({"qkv": QKV[:, :0]}, ValueError, "the map must have at least one row", "got 0 x 8"),
    "table and dense bias": ({"bias": torch.zeros(2, 16, 16)}, ValueError, "must come as bias_table or as bias", "got both"),
    "table of another window": ({"bias_table": torch.zeros(225, 2)}, ValueError, "bias_table must have shape [49, 2]", "got [225, 2]"),
    "table of other heads": ({"bias_table": torch.zeros(49, 4)}, ValueError, "bias_table must have shape [49, 2]", "got [49, 4]"),
    "bias of another window": ({"bias_table": None, "bias": torch.zeros(2, 9, 9)}, ValueError, "bias must have shape [2, 16, 16]", "got [2, 9, 9]"),
    "logit scale as in the model": ({"logit_scale": torch.zeros(2, 1, 1)}, ValueError, "logit_scale must have shape [2]", "got [2, 1, 1]"),
    "qkv_bias of C": ({"qkv_bias": torch.zeros(16)}, ValueError, "qkv_bias must have shape [48]", "got [16]"),
    "shift as large as the window": ({"shift_size": 4}, ValueError, "shift_size must lie between 0 and (3, 3)", "got (4, 4)"),
    "negative shift": ({"shift_size": (0, -1)}, ValueError, "shift_size must lie between 0 and (3, 3)", "got (0, -1)"),
    "window of 1": ({"window_size": 1}, ValueError, "window_size must lie between 2 and 32", "got (1, 1)"),
    "window of 33": ({"window_size": (4, 33)}, ValueError, "window_size must lie between 2 and 32", "got (4, 33)"),
    "window as a float": ({"window_size": 4.0}, TypeError, "window_size must be an int or a pair of ints", "got 4.0"),
    "window of three": ({"window_size": (4, 4, 4)}, TypeError, "window_size must be an int or a pair of ints", "got (4, 4, 4)"),
    "table of another dtype": ({"bias_table": TABLE.double()}, TypeError, "bias_table must have dtype torch.float32 beside qkv", "got torch.float64"),
    "half table beside float32": ({"bias_table": TABLE.half()}, TypeError, "bias_table must have dtype torch.float32 beside qkv", "got torch.float16"),
    "integer table": ({"bias_table": TABLE.long()}, TypeError, "bias_table must have dtype torch.float32 beside qkv", "got torch.int64"),
    "table on another device": ({"bias_table": TABLE.to("meta")}, ValueError, "bias_table must be on the device of qkv (cpu)", "got meta"),
    "table as a list": ({"bias_table": [0.0]}, TypeError, "bias_table must be a tensor", "got list"),
    "dropout of 1": ({"dropout_p": 1.0}, ValueError, "dropout_p must lie in [0, 1)", "got 1.0"),
    "negative dropout": ({"dropout_p": -0.1}, ValueError, "dropout_p must lie in [0, 1)", "got -0.1"),
    "dropout as text": ({"dropout_p": "0.1"}, TypeError, "dropout_p must be a number", "got '0.1'"),
    "seed as a float": ({"dropout_p": 0.1, "seed": 1.5}, TypeError, "seed must be an int", "got 1.5"),
    "seed too large": ({"dropout_p": 0.1, "seed": 2**63}, ValueError, "seed must fit 64 bits", "got 9223372036854775808"),
    "unknown backend": ({"backend": "cuda12"}, ValueError, "backend must be one of auto", "got 'cuda12'"),
    "backend as a number": ({"backend": 3}, ValueError, "backend must be one of auto", "got 3"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "expected", "got"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused_with_expected_got_and_a_hint(change, error, expected, got):
    arguments = {"qkv": QKV, "bias_table": TABLE, "num_heads": 2, "window_size": 4} | change
    with pytest.raises(error) as caught:
        vt.window_attention(**arguments)
    message = str(caught.value)
    assert message.startswith("window_attention: ")
    assert expected in message and got in message, message
    hint = message.split(got, 1)[1]
    assert hint.startswith("; ") and len(hint) > 10, f"no hint in: {message}"


def test_default_scale_is_the_inverse_root_of_the_head_dimension():
    qkv = torch.randn(1, 4, 4, 3 * 2 * 16, dtype=torch.float64)
    explicit = vt.window_attention(qkv, num_heads=2, window_size=4, scale=1 / math.sqrt(16))
    assert torch.equal(vt.window_attention(qkv, num_heads=2, window_size=4), explicit)
