"""Talking-heads attention's own truths: the published module, properties, refusals. The contract is in test_contract.py."""

import copy
import math

import pytest
import torch
from oracles import assert_close, random_parameters
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import vtkernels as vt
from vtkernels._core import testing
from vtkernels.ops.talking_heads_attention import reference
from vtkernels.ops.talking_heads_attention.cases import cases
from vtkernels.ops.talking_heads_attention.op import OP

EXACT = 1e-10
every_backend = pytest.mark.parametrize("backend", OP.backend_names)


def skip_unless_it_runs(backend, inputs):
    reason = testing.why_not(OP.name, inputs, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def inputs_of(name, dtype=torch.float32):
    return next(case for case in cases() if case.name == name).inputs(dtype)


# the formula


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_formula_of_the_backward_is_autograd_through_the_forward(case):
    inputs = testing.in_dtype(case.inputs(torch.float64), torch.float64)
    found = testing.run_case(OP.name, inputs, "reference")
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    out = reference.attend(testing.call_of(OP.name, {**inputs, **leaves}))
    assert_close(found["output"], out, 1e-12, "output")
    grads = torch.autograd.grad(out, list(leaves.values()), testing.upstream_for((out,)))
    for name, grad in zip(leaves, grads, strict=True):
        if name == "pre_bias":
            # zero; either holds its own rounding
            scale = 1 + testing._largest(found["output"])
            assert testing._largest(found[f"gradient of {name}"]) < EXACT * scale and testing._largest(grad) < EXACT * scale
        else:
            assert_close(found[f"gradient of {name}"], grad, 1e-11, f"gradient of {name}")


@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_identity_weights_are_plain_attention(tokens):
    heads, head_dim = 3, 8
    qkv = torch.randn(2, tokens, 3 * heads * head_dim, dtype=torch.float64)
    q, k, v = qkv.view(2, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    eye = torch.eye(heads, dtype=torch.float64)
    assert_close(vt.talking_heads_attention(qkv, eye, None, eye, None, num_heads=heads, backend="reference"), expected, 1e-12, "output")


@every_backend
def test_permuting_heads_permutes_the_output(backend):
    inputs = inputs_of("cait_xs_112")
    skip_unless_it_runs(backend, inputs)
    heads = inputs["num_heads"]
    order = torch.randperm(heads, generator=torch.Generator().manual_seed(3))
    permuted = dict(inputs)
    permuted["qkv"] = inputs["qkv"].unflatten(2, (3, heads, -1))[:, :, :, order].flatten(2)
    for name in ("pre_weight", "post_weight"):
        permuted[name] = inputs[name][order][:, order]
    for name in ("pre_bias", "post_bias"):
        permuted[name] = inputs[name][order]
    out, other = (OP.public(**given, backend=backend).unflatten(2, (heads, -1)) for given in (inputs, permuted))
    assert_close(other, out[:, :, order], 1e-5, "output")


@every_backend
def test_permuting_tokens_permutes_the_output(backend):
    inputs = inputs_of("tokens_33")
    skip_unless_it_runs(backend, inputs)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(3))
    out, other = (OP.public(**{**inputs, "qkv": qkv}, backend=backend) for qkv in (inputs["qkv"], inputs["qkv"][:, order]))
    assert_close(other, out[:, order], 1e-5, "output")


@every_backend
def test_an_image_does_not_see_the_others(backend):
    inputs = inputs_of("batch_7")
    skip_unless_it_runs(backend, inputs)
    alone = OP.public(**{**inputs, "qkv": inputs["qkv"][3:4]}, backend=backend)
    assert torch.equal(OP.public(**inputs, backend=backend)[3:4], alone)


@every_backend
def test_the_bias_before_the_softmax_changes_nothing(backend):
    inputs = inputs_of("tokens_33")
    skip_unless_it_runs(backend, inputs)
    found = testing.run_case(OP.name, inputs, backend)
    other = testing.run_case(OP.name, {**inputs, "pre_bias": inputs["pre_bias"] + 3.0}, backend)
    for name, value in found.items():
        assert_close(other[name], value, 1e-4, name)


@every_backend
def test_nothing_is_kept_but_the_arguments(backend):
    inputs = inputs_of("cait_xxs")
    skip_unless_it_runs(backend, inputs)
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    given = {value.data_ptr() for value in leaves.values()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.data_ptr()), x)[1], lambda x: x):
        OP.public(**{**inputs, **leaves}, backend=backend)
    assert set(kept) <= given


@pytest.mark.parametrize("name", ["batch_1", "batch_7", "tokens_300", "dropout_many_tokens"])
def test_the_number_of_threads_changes_no_output(name):
    inputs = inputs_of(name)
    skip_unless_it_runs("cpu", inputs)
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            outcomes.append(testing.run_case(OP.name, inputs, "cpu"))
            assert all(torch.equal(value, again) for value, again in zip(outcomes[-1].values(), testing.run_case(OP.name, inputs, "cpu").values(), strict=True))
    finally:
        torch.set_num_threads(before)
    for outcome in outcomes[1:]:
        assert torch.equal(outcome["output"], outcomes[0]["output"])
        for quantity, value in outcome.items():
            assert_close(value, outcomes[0][quantity], 1e-5, quantity)


@every_backend
def test_half_precision_survives_products_beyond_its_range(backend):
    """q . k exceeds 65504 by far and is scaled back; only the reference computes it in half precision."""
    if backend == "reference":
        pytest.skip("it multiplies q by the scale first, and would not overflow here anyway")
    generator = torch.Generator().manual_seed(5)
    qkv = (100.0 * torch.randn(1, 20, 3 * 64, generator=generator)).half()
    eye = torch.eye(2)
    inputs = {"qkv": qkv, "pre_weight": eye, "pre_bias": None, "post_weight": eye, "post_bias": None, "num_heads": 2, "scale": 1e-5}
    skip_unless_it_runs(backend, inputs)
    expected = OP.public(**testing.in_dtype(inputs, torch.float64), backend="reference")
    assert_close(OP.public(**inputs, backend=backend), expected.half(), 1e-2, "output")


# the published module


def modules(timm_cait, dim, heads, **options):
    peer = random_parameters(timm_cait.TalkingHeadAttn(dim, heads, qkv_bias=True, **options)).double()
    module = vt.nn.TalkingHeadsAttention(dim, heads, qkv_bias=True, **options).double()
    module.load_state_dict(peer.state_dict())
    return module, peer


@pytest.mark.parametrize(("dim", "heads", "tokens"), [(192, 4, 49), (48, 8, 30), (36, 3, 1), (40, 1, 17)])
def test_agrees_with_timm(timm_cait, dim, heads, tokens):
    module, peer = modules(timm_cait, dim, heads)
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    upstream = torch.randn_like(x)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, peer_out = module(found), peer(expected)
    assert_close(out, peer_out, EXACT, "output")
    out.backward(upstream)
    peer_out.backward(upstream)
    assert_close(found.grad, expected.grad, EXACT, "gradient of x")
    largest = max(float(parameter.grad.abs().max()) for parameter in peer.parameters())
    for (name, mine), (peer_name, theirs) in zip(module.named_parameters(), peer.named_parameters(), strict=True):
        assert name == peer_name
        if name == "proj_l.bias":
            assert float(mine.grad.abs().max()) < EXACT * largest
        elif not (tokens == 1 and name == "proj_l.weight"):
            assert_close(mine.grad, theirs.grad, EXACT, f"gradient of {name}")


def test_state_dicts_go_either_way(timm_cait):
    module, peer = modules(timm_cait, 48, 4)
    peer.load_state_dict(module.state_dict())
    assert list(module.state_dict()) == list(peer.state_dict())


def test_the_module_drops_in_training_only():
    module = vt.nn.TalkingHeadsAttention(32, 2, attn_drop=0.5, proj_drop=0.3)
    x = torch.randn(2, 9, 32)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_the_module_copies_and_tells_what_it_is():
    module = vt.nn.TalkingHeadsAttention(32, 2, attn_drop=0.1)
    x = torch.randn(1, 5, 32)
    assert torch.equal(copy.deepcopy(module).eval()(x), module.eval()(x))
    assert "num_heads=2" in repr(module) and "attn_drop=0.1" in repr(module)
    with pytest.raises(ValueError, match=r"dim must be a multiple of num_heads=3, got 32"):
        vt.nn.TalkingHeadsAttention(32, 3)


# tracing


def test_one_graph_serves_every_batch_and_token_count(fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")
    weight, bias = torch.randn(2, 2, requires_grad=True), torch.randn(2, requires_grad=True)

    def function(qkv):
        return vt.talking_heads_attention(qkv, weight, bias, weight, bias, num_heads=2)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch, tokens in ((2, 9), (3, 17), (5, 40)):
        qkv = torch.randn(batch, tokens, 48, requires_grad=True)
        for axis in range(2):
            torch._dynamo.mark_dynamic(qkv, axis)
        found = torch.autograd.grad(compiled(qkv).square().sum(), (qkv, weight, bias))
        expected = torch.autograd.grad(function(qkv).square().sum(), (qkv, weight, bias))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert counter.frame_count == 1


def test_a_drawn_seed_follows_torchs_generator():
    qkv, weight = torch.randn(2, 8, 24), torch.eye(1)

    def function():
        return vt.talking_heads_attention(qkv, weight, None, weight, None, num_heads=1, dropout_p=0.5)

    torch.manual_seed(11)
    first, second = function(), function()
    assert not torch.equal(first, second)
    torch.manual_seed(11)
    assert torch.equal(function(), first) and torch.equal(function(), second)


def test_meta_tensors_have_shapes_only():
    weight = torch.empty(2, 2, device="meta")
    out = vt.talking_heads_attention(torch.empty(2, 10, 48, device="meta"), weight, None, weight, None, num_heads=2)
    assert out.device.type == "meta" and out.shape == (2, 10, 16)


# bad input: what was expected, what came, what to try

QKV, WEIGHT, BIAS = torch.zeros(2, 9, 48), torch.zeros(2, 2), torch.zeros(2)
BAD_INPUTS = {
    "not a tensor": ({"qkv": [1.0]}, TypeError, "qkv must be a tensor", "got list"),
    "two dimensions": ({"qkv": QKV[0]}, ValueError, "qkv must have 3 dimensions [B, N, 3C]", "got [9, 48]"),
    "integers": ({"qkv": QKV.long()}, TypeError, "qkv must have dtype", "got torch.int64"),
    "channels no multiple of 3": ({"qkv": QKV[..., :47]}, ValueError, "last dimension must be 3 * C", "got 47"),
    "no channels": ({"qkv": QKV[..., :0]}, ValueError, "last dimension must be 3 * C", "got 0"),
    "no tokens": ({"qkv": QKV[:, :0]}, ValueError, "qkv must have at least one token", "got [2, 0, 48]"),
    "heads that do not divide": ({"num_heads": 3}, ValueError, "C must be a multiple of num_heads=3", "got 16"),
    "no heads": ({"num_heads": 0}, ValueError, "num_heads must be a positive int", "got 0"),
    "half a head": ({"num_heads": 1.5}, ValueError, "num_heads must be a positive int", "got 1.5"),
    "no weight": ({"pre_weight": None}, TypeError, "pre_weight must be a tensor", "got NoneType"),
    "weight of other heads": ({"pre_weight": torch.zeros(4, 4)}, ValueError, "pre_weight must have shape [2, 2]", "got [4, 4]"),
    "weight of one dimension": ({"post_weight": BIAS}, ValueError, "post_weight must have shape [2, 2]", "got [2]"),
    "bias of other heads": ({"post_bias": torch.zeros(3)}, ValueError, "post_bias must have shape [2]", "got [3]"),
    "another dtype": ({"pre_weight": WEIGHT.double()}, TypeError, "pre_weight must have dtype torch.float32", "got torch.float64"),
    "half beside float32": ({"post_bias": BIAS.half()}, TypeError, "post_bias must have dtype torch.float32", "got torch.float16"),
    "another device": ({"pre_bias": BIAS.to("meta")}, ValueError, "pre_bias must be on the device of qkv (cpu)", "got meta"),
    "a scale that is no number": ({"scale": "1"}, TypeError, "scale must be a number", "got '1'"),
    "dropout of everything": ({"dropout_p": 1.0}, ValueError, "dropout_p must lie in [0, 1)", "got 1.0"),
    "dropout that is no number": ({"dropout_p": "0.1"}, TypeError, "dropout_p must be a number", "got '0.1'"),
    "a seed that is no int": ({"seed": 1.5}, TypeError, "seed must be an int", "got 1.5"),
    "a seed beyond 64 bits": ({"seed": 2**63}, ValueError, "seed must fit 64 bits", f"got {2**63}"),
    "an unknown backend": ({"backend": "fast"}, ValueError, "backend must be one of auto", "got 'fast'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "expected", "got"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused_with_expected_got_and_a_hint(change, error, expected, got):
    arguments = {"qkv": QKV, "pre_weight": WEIGHT, "pre_bias": BIAS, "post_weight": WEIGHT, "post_bias": BIAS, "num_heads": 2} | change
    with pytest.raises(error) as caught:
        vt.talking_heads_attention(**arguments)
    message = str(caught.value)
    assert message.startswith("talking_heads_attention: ")
    assert expected in message and got in message, message
    hint = message.split(got, 1)[1]
    assert hint.startswith("; ") and len(hint) > 10, f"no hint in: {message}"


def test_default_scale_is_the_inverse_root_of_the_head_dimension():
    qkv, weight = torch.randn(1, 4, 3 * 2 * 16, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    explicit = vt.talking_heads_attention(qkv, weight, None, weight, None, num_heads=2, scale=1 / math.sqrt(16))
    assert torch.equal(vt.talking_heads_attention(qkv, weight, None, weight, None, num_heads=2), explicit)
