"""Class and pooled attention's own truths: golden numbers, peers, properties, refusals. The contract is in test_contract*.py."""

import copy

import pytest
import torch
from oracles import assert_close, random_parameters
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import vtkernels as vt
from vtkernels._core import testing
from vtkernels._core.philox import keep_threshold, philox
from vtkernels.ops.class_attention import pooled, reference
from vtkernels.ops.class_attention.cases import cases
from vtkernels.ops.class_attention.op import OP

CLASS, POOLED = OP.name, pooled.OP.name
every_backend = pytest.mark.parametrize("backend", OP.backend_names)


def skip_unless_it_runs(op, backend, inputs):
    reason = testing.why_not(op, inputs, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def inputs_of(name, dtype=torch.float32, op=CLASS):
    return next(case for case in cases(op) if case.name == name).inputs(dtype)


def heads_of(x, heads):
    """[B, N, C] -> [B, h, N, D]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


# golden numbers


@every_backend
def test_golden_case(backend):
    x = torch.sin(0.3 * torch.arange(60, dtype=torch.float64)).view(2, 5, 6)
    inputs = {"q": heads_of(x[:, :1], 2), "k": heads_of(0.7 * x + 0.1, 2), "v": heads_of(x**2, 2)}
    dtype, tolerance = (torch.float64, 1e-12) if backend == "reference" else (torch.float32, 1e-6)
    inputs = testing.in_dtype(inputs, dtype)
    skip_unless_it_runs(POOLED, backend, inputs)
    upstream = heads_of(torch.cos(torch.arange(12, dtype=torch.float64)).view(2, 1, 6), 2)
    found = testing.run_case(POOLED, inputs, backend, (upstream.to(dtype),))
    golden = {
        ("output", 0): [0.458937973737986, 0.4537231730957686, 0.4646741994838684, 0.5517696814069608, 0.5644736658111098, 0.5546551438284264],
        ("gradient of q", 0): [
            -0.009758926022191272, -0.015773737249069466, -0.020379527505640187, 0.07153010853693186, 0.05189342759202443, 0.027621261311985043,
        ],
        ("gradient of k", 2): [
            -0.03158685726715662, -0.009538820150903455, 0.01336129136042737, 0.006324145466685776, 0.009673796947975231, 0.012159316958899566,
        ],
        ("gradient of v", 2): [
            0.18630346073279078, 0.14628092640566692, -0.028231617049771816, -0.06100453994129762, -0.056179862255117306, 0.00029632170192835522,
        ],
    }  # fmt: skip
    for (name, row), numbers in golden.items():
        assert_close(found[name][1, :, row].flatten().double(), torch.tensor(numbers, dtype=torch.float64), tolerance, name)


# the formula


@pytest.mark.parametrize("case", cases(CLASS), ids=lambda case: case.name)
def test_the_formula_of_the_backward_is_autograd_through_the_forward(case):
    inputs = testing.in_dtype(case.inputs(torch.float64), torch.float64)
    found = testing.run_case(CLASS, inputs, "reference")
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    out = reference.attend(testing.call_of(CLASS, {**inputs, **leaves}))
    assert_close(found["output"], out, 1e-12, "output")
    grads = torch.autograd.grad(out, list(leaves.values()), testing.upstream_for((out,)), materialize_grads=True)
    for name, grad in zip(leaves, grads, strict=True):
        assert_close(found[f"gradient of {name}"], grad, 1e-11, f"gradient of {name}")


@pytest.mark.parametrize("case", cases(POOLED), ids=lambda case: case.name)
def test_the_formula_of_the_pooled_backward_is_autograd_through_the_forward(case):
    inputs = testing.in_dtype(case.inputs(torch.float64), torch.float64)
    found = testing.run_case(POOLED, inputs, "reference")
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    out = reference.pool(testing.call_of(POOLED, {**inputs, **leaves}))
    for name, grad in zip(leaves, torch.autograd.grad(out, list(leaves.values()), testing.upstream_for((out,))), strict=True):
        assert_close(found[f"gradient of {name}"], grad, 1e-11, f"gradient of {name}")


@pytest.mark.parametrize("case", cases(CLASS), ids=lambda case: case.name)
def test_folded_is_unfolded(case):
    """Keys and values formed, or folded into directions and mixtures: the same output."""
    inputs = testing.in_dtype(case.inputs(torch.float64), torch.float64)
    call = testing.call_of(CLASS, inputs)
    probabilities, _, _, mixtures = reference.fold(call)
    assert_close(probabilities.sum(1), torch.ones_like(probabilities[:, 0]), 1e-12, "sums of probabilities")
    if call.dropout_p > 0:
        return
    out = torch.einsum("bhc,hdc->bhd", mixtures, call.v_weight.unflatten(0, (call.num_heads, -1))).flatten(1)
    assert_close(out if call.v_bias is None else out + call.v_bias, reference.attend(call), 1e-12, "output")


def test_it_is_the_first_row_of_self_attention():
    inputs = inputs_of("cait_xs24", torch.float64)
    x, heads = inputs["tokens"], inputs["num_heads"]
    q, k, v = (heads_of(F.linear(x, inputs[f"{part}_weight"], inputs[f"{part}_bias"]), heads) for part in "qkv")
    expected = F.scaled_dot_product_attention(q, k, v)[:, :, 0].flatten(1)
    assert_close(OP.public(**inputs, backend="reference"), expected, 1e-12, "output")


@pytest.mark.parametrize("masked", [1, 2])
def test_pooled_is_scaled_dot_product_attention(masked):
    q, k, v = (torch.randn(2, 3, rows, 16, dtype=torch.float64) for rows in (masked, 30, 30))
    assert_close(vt.pooled_attention(q, k, v), F.scaled_dot_product_attention(q, k, v), 1e-12, "output")


# properties, on every backend


@every_backend
def test_a_class_token_alone_is_its_own_value(backend):
    inputs = inputs_of("class_token_alone")
    skip_unless_it_runs(CLASS, backend, inputs)
    out, probabilities = OP.public(**inputs, return_probs=True, backend=backend)
    assert_close(out, F.linear(inputs["tokens"][:, 0], inputs["v_weight"], inputs["v_bias"]), 1e-5, "output")
    assert torch.equal(probabilities, torch.ones(2, 2, 1))


@every_backend
def test_the_order_of_patches_does_not_matter(backend):
    inputs = inputs_of("cait_xs24")
    skip_unless_it_runs(CLASS, backend, inputs)
    order = torch.cat((torch.zeros(1, dtype=torch.long), 1 + torch.randperm(49)))
    found = testing.run_case(CLASS, inputs, backend)
    permuted = testing.run_case(CLASS, {**inputs, "tokens": inputs["tokens"][:, order]}, backend)
    assert_close(permuted["output"], found["output"], 1e-5, "output")
    assert_close(permuted["gradient of tokens"], found["gradient of tokens"][:, order], 1e-5, "gradient of tokens")


@every_backend
def test_a_key_bias_changes_nothing(backend):
    inputs = inputs_of("cait_xs24")
    skip_unless_it_runs(CLASS, backend, inputs)
    found = testing.run_case(CLASS, inputs, backend)
    assert not found["gradient of k_bias"].any()
    if backend != "reference":
        without = testing.run_case(CLASS, {**inputs, "k_bias": None}, backend)
        assert all(torch.equal(without[name], found[name]) for name in without)


@every_backend
def test_images_do_not_touch_each_other(backend):
    inputs = inputs_of("batch_9")
    skip_unless_it_runs(CLASS, backend, inputs)
    other = {**inputs, "tokens": inputs["tokens"].clone()}
    other["tokens"][4] = torch.nan
    before, after = (testing.run_case(CLASS, given, backend) for given in (inputs, other))
    for name in ("output", "gradient of tokens"):
        touched = after[name].isnan().flatten(1).any(1)
        assert touched.tolist() == [image == 4 for image in range(9)], name
        assert torch.equal(before[name][~touched], after[name][~touched]), name


@every_backend
@pytest.mark.parametrize("name", ["cait_xs24", "channels_35", "dropout", "heads_13"])
def test_probabilities(backend, name):
    inputs = inputs_of(name)
    skip_unless_it_runs(CLASS, backend, inputs)
    inputs["tokens"].requires_grad_()
    out, probabilities = OP.public(**inputs, return_probs=True, backend=backend)
    assert torch.equal(out, OP.public(**inputs, backend=backend))
    expected = reference.fold(testing.call_of(CLASS, testing.in_dtype(inputs, torch.float64)))[0].mT
    assert probabilities.dtype == torch.float32 and not probabilities.requires_grad
    assert_close(probabilities.double(), expected.detach(), 1e-6, "probabilities, before dropout")


def test_probabilities_of_half_precision_are_float32():
    probabilities = OP.public(**inputs_of("half_parameters", torch.bfloat16), return_probs=True)[1]
    assert probabilities.dtype == torch.float32 and probabilities.shape == (2, 4, 30)


@every_backend
def test_dropout_drops_what_philox_says(backend):
    """Equal scores, and a token for each channel: the output shows which weights were kept. Counter: (token, image * heads + head)."""
    batch, heads, tokens, p, seed = 3, 2, 16, 0.25, 2**45 + 9
    zero, eye = torch.zeros(2 * tokens, 2 * tokens), torch.eye(2 * tokens)
    x = eye[:tokens] + eye[tokens:]
    inputs = {"tokens": x.expand(batch, tokens, 2 * tokens), "q_weight": zero, "k_weight": zero, "v_weight": eye, "num_heads": heads}
    inputs |= {"dropout_p": p, "seed": seed}
    skip_unless_it_runs(CLASS, backend, inputs)
    out = OP.public(**inputs, backend=backend).view(batch * heads, tokens)
    item, element = torch.arange(batch * heads)[:, None], torch.arange(tokens)
    words = philox(seed, *torch.broadcast_tensors(element, item, item * 0, item * 0))[0]
    assert_close(out, (words < keep_threshold(p)) / (tokens * (1 - p)), 1e-6, "kept weights")


@pytest.mark.parametrize(("op", "name"), [(CLASS, "cait_xxs24"), (CLASS, "channels_35"), (CLASS, "heads_1"), (CLASS, "dropout"), (POOLED, "dropout")])
def test_the_number_of_threads_changes_no_bit(op, name):
    inputs = inputs_of(name, op=op)
    skip_unless_it_runs(op, "cpu", inputs)
    threads, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outcomes.append(testing.run_case(op, inputs, "cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, other[key]) for other in outcomes[1:] for key, value in outcomes[0].items())


@pytest.mark.parametrize("op", [CLASS, POOLED])
def test_the_cpu_runs_what_it_promises(op):
    """Any size, three dtypes, every case: no silent way back to the reference."""
    if vt.backends()[op]["cpu"] is not None:
        pytest.skip(vt.backends()[op]["cpu"])
    for case in cases(op):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert testing.why_not(op, case.inputs(dtype), "cpu") is None, case.name


# tracing


def test_one_graph_serves_every_batch_and_token_count(fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")
    parameters = [torch.randn(24, 24, requires_grad=True) for _ in range(3)] + [torch.randn(24, requires_grad=True) for _ in range(3)]

    def function(tokens):
        return vt.class_attention(tokens, *parameters, num_heads=3)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch, count in ((2, 5), (3, 17), (5, 40)):
        tokens = torch.randn(batch, count, 24, requires_grad=True)
        for axis in range(2):
            torch._dynamo.mark_dynamic(tokens, axis)
        found = torch.autograd.grad(compiled(tokens).square().sum(), (tokens, *parameters))
        expected = torch.autograd.grad(function(tokens).square().sum(), (tokens, *parameters))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert counter.frame_count == 1


@pytest.mark.parametrize("op", [CLASS, POOLED])
def test_meta_tensors_have_shapes_only(op):
    name = "cait_xs24" if op == CLASS else "deit_distilled"
    inputs = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in inputs_of(name, op=op).items()}
    out = testing.OPS[op].public(**inputs)
    assert out.device.type == "meta" and out.shape == ((2, 288) if op == CLASS else (2, 3, 2, 64))


@every_backend
def test_autocast_casts_the_tokens_and_leaves_the_parameters(backend):
    inputs = inputs_of("cait_xs24")
    skip_unless_it_runs(CLASS, backend, testing.in_dtype(inputs, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        found = testing.run_case(CLASS, inputs, backend)
    expected = testing.run_case(CLASS, {**inputs, "tokens": inputs["tokens"].bfloat16()}, backend)
    assert found["output"].dtype == torch.bfloat16
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name
    assert found["gradient of q_weight"].dtype == torch.float32


# the module, and its peer


def module_pair(timm_cait, qkv_bias=True, **options):
    peer = random_parameters(timm_cait.ClassAttn(48, num_heads=3, qkv_bias=qkv_bias, **options)).double().eval()
    ours = vt.nn.ClassAttention(48, num_heads=3, qkv_bias=qkv_bias, dtype=torch.float64, **options).eval()
    assert list(ours.state_dict()) == list(peer.state_dict())
    ours.load_state_dict(peer.state_dict())
    return ours, peer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_it_is_timms_class_attention(timm_cait, qkv_bias, fused):
    ours, peer = module_pair(timm_cait, qkv_bias)
    peer.fused_attn = fused
    x = torch.randn(3, 17, 48, dtype=torch.float64, requires_grad=True)
    out, expected = ours(x), peer(x)
    assert_close(out, expected, 1e-10, "output")
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, *ours.parameters()), upstream)
    wanted = torch.autograd.grad(expected, (x, *peer.parameters()), upstream)
    for name, one, other in zip(("x", *dict(ours.named_parameters())), found, wanted, strict=True):
        assert_close(one, other, 1e-10, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_module_on_the_cpu_is_as_right_as_timms(timm_cait, dtype):
    ours, peer = module_pair(timm_cait)
    ours.backend = "auto"
    x = torch.randn(3, 50, 48, dtype=torch.float64).to(dtype)
    truth = copy.deepcopy(peer)(x.double())
    error, allowed = (float((module.to(dtype)(x).double() - truth).detach().abs().max()) for module in (ours, peer))
    assert error <= 2 * allowed + torch.finfo(dtype).eps * float(truth.abs().max())


def test_the_module_under_activation_checkpointing():
    module = vt.nn.ClassAttention(12, 3, qkv_bias=True)
    x = torch.randn(2, 5, 12, requires_grad=True)
    (plain,) = torch.autograd.grad(module(x).square().sum(), x)
    (recomputed,) = torch.autograd.grad(checkpoint(module, x, use_reentrant=False).square().sum(), x)
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def test_module_dropout_is_for_training_only():
    module = vt.nn.ClassAttention(48, num_heads=3, attn_drop=0.5)
    x = torch.randn(2, 9, 48)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x)) and module(x).shape == (2, 1, 48)
    assert "num_heads=3" in repr(module)


def test_module_scale_and_width():
    assert vt.nn.ClassAttention(48, num_heads=3, qk_scale=0.0).scale == 0.25
    assert vt.nn.ClassAttention(48, num_heads=3, qk_scale=0.5).scale == 0.5
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads=5, got 48"):
        vt.nn.ClassAttention(48, num_heads=5)


def test_a_timm_model_with_the_module_swapped_in(timm_cait):
    """A CaiT of one block of each kind gives the same logits and gradients."""
    model = timm_cait.Cait(img_size=32, patch_size=16, embed_dim=48, depth=1, num_heads=3, depth_token_only=2, num_classes=5, init_values=0.5)
    model = random_parameters(model).double().eval()
    swapped = copy.deepcopy(model)
    for block in swapped.blocks_token_only:
        ours = vt.nn.ClassAttention(48, num_heads=3, qkv_bias=True, dtype=torch.float64)
        ours.load_state_dict(block.attn.state_dict())
        block.attn = ours
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected, found = model(image), swapped(image)
    assert_close(found, expected, 1e-10, "logits")
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), list(m.parameters())) for out, m in ((found, swapped), (expected, model))), strict=True):
        assert_close(one, other, 1e-9, "gradient")


# bad input: what was expected, what came, what to try

X, WEIGHT = torch.zeros(2, 5, 24), torch.zeros(24, 24)
BAD_CLASS = {
    "not a tensor": ({"tokens": [1.0]}, TypeError, "tokens must be a tensor", "got list"),
    "two dimensions": ({"tokens": X[0]}, ValueError, "tokens must have 3 dimensions [B, 1 + N, C]", "got [5, 24]"),
    "integers": ({"tokens": X.long()}, TypeError, "tokens must have dtype", "got torch.int64"),
    "no token": ({"tokens": X[:, :0]}, ValueError, "tokens must hold the class token", "got [2, 0, 24]"),
    "no channels": ({"tokens": X[..., :0]}, ValueError, "C must be a positive multiple of num_heads=3", "got 0"),
    "heads that do not divide": ({"num_heads": 5}, ValueError, "C must be a positive multiple of num_heads=5", "got 24"),
    "no heads": ({"num_heads": 0}, ValueError, "num_heads must be a positive int", "got 0"),
    "a fraction of heads": ({"num_heads": 3.0}, ValueError, "num_heads must be a positive int", "got 3.0"),
    "a fused weight": ({"q_weight": torch.zeros(72, 24)}, ValueError, "q_weight must have shape [24, 24]", "got [72, 24]"),
    "a missing weight": ({"k_weight": None}, TypeError, "k_weight must be a tensor", "got NoneType"),
    "a bias of other width": ({"v_bias": torch.zeros(8)}, ValueError, "v_bias must have shape [24]", "got [8]"),
    "mixed dtypes": ({"v_weight": WEIGHT.double()}, TypeError, "v_weight must have dtype torch.float32", "got torch.float64"),
    "half beside float": ({"q_bias": torch.zeros(24).half()}, TypeError, "q_bias must have dtype torch.float32", "got torch.float16"),
    "another device": ({"k_weight": WEIGHT.to("meta")}, ValueError, "k_weight must be on the device of tokens (cpu)", "got meta"),
    "dropout of 1": ({"dropout_p": 1.0}, ValueError, "dropout_p must lie in [0, 1)", "got 1.0"),
    "dropout in words": ({"dropout_p": "0.1"}, TypeError, "dropout_p must be a number", "got '0.1'"),
    "a fractional seed": ({"dropout_p": 0.5, "seed": 0.5}, TypeError, "seed must be an int", "got 0.5"),
    "a long seed": ({"dropout_p": 0.5, "seed": 2**63}, ValueError, "seed must fit 64 bits", f"got {2**63}"),
    "return_probs in words": ({"return_probs": "yes"}, TypeError, "return_probs must be True or False", "got 'yes'"),
}
ROWS = torch.zeros(2, 3, 5, 8)
BAD_POOLED = {
    "three dimensions": ({"k": ROWS[0]}, ValueError, "k must have 4 dimensions [B, heads, N, D]", "got [3, 5, 8]"),
    "mixed dtypes": ({"v": ROWS.half()}, TypeError, "v must have q's dtype torch.float32", "got torch.float16"),
    "integers": ({"q": ROWS.long()}, TypeError, "q must have dtype", "got torch.int64"),
    "another device": ({"k": ROWS.to("meta")}, ValueError, "k must be on the device of q (cpu)", "got meta"),
    "no query": ({"q": ROWS[:, :, :0]}, ValueError, "q must have at least one head, one query", "got [2, 3, 0, 8]"),
    "no key": ({"k": ROWS[:, :, :0], "v": ROWS[:, :, :0]}, ValueError, "k must have at least one key", "got [2, 3, 0, 8]"),
    "other heads": ({"k": ROWS[:, :2]}, ValueError, "k must have shape [2, 3, 5, 8]", "got [2, 2, 5, 8]"),
    "fewer values than keys": ({"v": ROWS[:, :, :4]}, ValueError, "v must have shape [2, 3, 5, 8]", "got [2, 3, 4, 8]"),
    "negative dropout": ({"dropout_p": -0.1}, ValueError, "dropout_p must lie in [0, 1)", "got -0.1"),
}


@pytest.mark.parametrize(("change", "error", "expected", "got"), BAD_CLASS.values(), ids=BAD_CLASS.keys())
def test_bad_input_is_refused(change, error, expected, got):
    arguments = {"tokens": X, "q_weight": WEIGHT, "k_weight": WEIGHT, "v_weight": WEIGHT, "num_heads": 3} | change
    with pytest.raises(error) as caught:
        vt.class_attention(**arguments)
    assert str(caught.value).startswith("class_attention: ") and expected in str(caught.value) and got in str(caught.value)


@pytest.mark.parametrize(("change", "error", "expected", "got"), BAD_POOLED.values(), ids=BAD_POOLED.keys())
def test_bad_input_of_pooled_attention_is_refused(change, error, expected, got):
    with pytest.raises(error) as caught:
        vt.pooled_attention(**{"q": ROWS[:, :, :1], "k": ROWS, "v": ROWS} | change)
    assert str(caught.value).startswith("pooled_attention: ") and expected in str(caught.value) and got in str(caught.value)
