"""What every model of the zoo promises, on the smallest variant of each family."""

import copy

import pytest
import torch
from models.zoo import FULL, NANO, images, nano
from torch import nn
from torch.nn import functional as F

from vtkernels.models import FeatureMaps, create_model

EVERY = pytest.mark.parametrize("name", NANO)


def has_maps(name: str) -> bool:
    with torch.device("meta"):
        model = create_model(name)
    try:
        return bool(model.maps_info)
    except NotImplementedError:
        return False


WITH_MAPS = pytest.mark.parametrize("name", [name for name in NANO if has_maps(name)])


@EVERY
def test_logits(name):
    model = nano(name).eval()
    x = images(3)
    logits = model(x)
    assert logits.shape == (3, 10) and logits.isfinite().all()
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), logits, rtol=0, atol=0)
    # in evaluation an image's logits do not depend on its neighbours
    torch.testing.assert_close(model(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    assert model(x[:0]).shape == (0, 10)


@EVERY
def test_images_of_another_shape(name):
    wide = nano(name, img_size=(32, 64)).eval()
    assert wide(images(2, (32, 64))).shape == (2, 10)
    gray = nano(name, in_channels=1).eval()
    assert gray(images(2, channels=1)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"images must have shape \[B, 1, H, W\], got \[2, 3, 32, 32\]; create_model\(\.\.\., in_channels=3\)"):
        gray(images(2))
    with pytest.raises(ValueError, match="images must have shape"):
        gray(images(2)[0])
    if wide.fixed_size:
        with pytest.raises(ValueError, match=r"images must be 32 x 64 pixels, got 32 x 32; create_model\(\.\.\., img_size=\(32, 32\)\)"):
            wide(images(2))
    else:
        assert wide(images(2, (64, 32))).shape == (2, 10)


@EVERY
def test_another_head(name):
    model = nano(name, num_classes=0).eval()
    features = model(images())
    assert features.dim() == 2 and features.shape[0] == 2
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    torch.testing.assert_close(model(images()), features, rtol=0, atol=0)


@EVERY
def test_every_parameter_learns_and_one_batch_is_overfitted(name):
    model = nano(name)
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    x, target = images(8), torch.arange(8)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3, weight_decay=0.0)
    losses = []
    for step in range(60):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        if step == 1:
            silent = {key for key, parameter in model.named_parameters() if parameter.grad is None} - frozen
            assert not silent, f"no gradient reaches {silent}"
        optimizer.step()
        losses.append(loss.item())
        if loss < 0.1:
            break
    assert losses[-1] < 0.1, f"the loss of one batch fell from {losses[0]:.2f} to {losses[-1]:.2f} only"


@EVERY
def test_exports_for_any_batch(name):
    model = nano(name).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(model, (images(3),), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(images(5)), model(images(5)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not FULL, reason="asked of full runs only")
@EVERY
def test_compiles_whole(name):
    model = nano(name).eval()
    torch._dynamo.reset()
    # what follows the tracing is the training test's to see
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-5)


@EVERY
def test_compiles_whole_in_training(name):
    model = nano(name, drop_path=0.2)
    x, target = images(), torch.arange(2)
    torch._dynamo.reset()
    # without the derivation of the backward, tracing takes half the time
    compiled = torch.compile(model, backend="aot_eager" if FULL else "eager", fullgraph=True)
    F.cross_entropy(compiled(x), target).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@EVERY
def test_autocast(name):
    model = nano(name).eval()
    x = images()
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert (logits.float() - expected).norm() <= 0.05 * expected.norm() + 0.05
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x), torch.arange(2))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


@EVERY
def test_checkpointed_gradients_are_the_same(name):
    model = nano(name, drop_path=0.2)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x, target = images(4), torch.arange(4)
    for network in (model, twin):
        torch.manual_seed(3)
        F.cross_entropy(network(x), target).backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    # nor do running statistics see a batch twice
    for (key, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(theirs, ours, msg=lambda text, key=key: f"{key}: {text}")


@EVERY
def test_layer_groups_and_decay(name):
    model = nano(name)
    groups = model.layer_groups()
    names = [key for group in groups for key in group]
    assert sorted(names) == sorted(key for key, _ in model.named_parameters())
    assert len(groups) >= 3
    assert any(key.startswith(model.classifiers[0]) for key in groups[-1])
    assert model.no_weight_decay() <= {key for key, _ in model.named_parameters()} | {"cls_token", "dist_token"}


@EVERY
def test_stochastic_depth(name):
    rates = [module.rate for module in nano(name, drop_path=0.3).modules() if type(module).__name__ == "DropPath"]
    # some families count to the block after the last, which is then a little below
    assert not rates or 0.2 <= max(rates) <= 0.3 + 1e-9
    assert all(module.rate == 0 for module in nano(name, drop_path=0.0).modules() if type(module).__name__ == "DropPath")


@WITH_MAPS
def test_feature_maps(name):
    model = nano(name, features_only=True, img_size=(32, 64))
    assert isinstance(model, FeatureMaps)
    maps = model(images(2, (32, 64)))
    assert len(maps) == len(model.channels) == len(model.reductions) >= 2
    for index, (found, channels, reduction) in enumerate(zip(maps, model.channels, model.reductions, strict=True)):
        assert found.shape == (2, channels, -(-32 // reduction), -(-64 // reduction)), f"map {index}"
    sum(found.square().mean() for found in maps).backward()
    silent = {key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None}
    assert not silent, f"no gradient reaches {silent}"


@EVERY
def test_attention_maps(name):
    model = nano(name).eval()
    if not any(hasattr(module, "attention_weights") for module in model.modules()):
        with pytest.raises(ValueError, match="have attention layers"):
            model.attention_maps(images())
        return
    for layer, weights in model.attention_maps(images()).items():
        assert weights.dim() == 4 and weights.shape[0] % 2 == 0, layer
    if model.prefix_tokens:
        assert model.get_attention(images()).shape[0] == 2
        assert model.get_attention(images()).dim() == 4
    else:
        with pytest.raises(ValueError, match="have a class token"):
            model.get_attention(images())


@EVERY
def test_state_survives(name, tmp_path):
    model = nano(name).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = create_model(name, num_classes=10, checkpoint=tmp_path / "model.pth").eval()
    assert again.load_report.complete
    torch.testing.assert_close(again(images()), model(images()), rtol=0, atol=0)


@EVERY
def test_made_on_the_meta_device_and_filled(name):
    model = nano(name).eval()
    with torch.device("meta"):
        empty = create_model(name, num_classes=10)
    empty.to_empty(device="cpu")
    for tensor in (*empty.parameters(), *empty.buffers()):
        # whatever the memory holds must be overwritten
        tensor.detach().fill_(float("nan") if tensor.is_floating_point() else -1)
    empty.load_state_dict(model.state_dict())
    torch.testing.assert_close(empty.eval()(images()), model(images()), rtol=0, atol=0)


@EVERY
def test_every_normalisation_has_its_own_initial_values(name):
    for key, module in nano(name).named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)) and module.weight is not None:
            assert module.bias is None or (module.bias == 0).all(), key
