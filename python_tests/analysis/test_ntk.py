"""The neural tangent kernel against known and dense ones."""

import math

import pytest
import torch
from known_problems import golden_loader, golden_model
from torch import nn

import vtkernels as vt
from vtkernels.analysis import ntk as module
from vtkernels.analysis.ntk import Options, ntk, run


def dense_kernel(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """[N * K, N * K] by torch's own Jacobian, which needs all gradients at once."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda values: torch.func.functional_call(model, values, (images,)))(parameters)
    rows = torch.cat([part.flatten(2) for part in jacobian.values()], 2).flatten(0, 1)
    return rows @ rows.T


def test_golden_kernels():
    found = ntk(golden_model(), golden_loader(), full=True)
    assert found.full_eigenvalues == pytest.approx([0.0370251719, 0.3236185127, 0.9175086402, 3.9183308472, 8.2249057853, 14.9963602936], abs=1e-9)
    assert found.eigenvalues == pytest.approx([0.2106421789, 4.8484460365, 9.1497864101], abs=1e-9)
    assert found.full_condition == pytest.approx(405.031483, abs=1e-6) and found.condition == pytest.approx(43.43757958, abs=1e-7)
    assert sum(found.full_eigenvalues) == pytest.approx(28.417749251, abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_change_nothing_and_bound_the_memory(chunk, monkeypatch):
    held = []
    rows = module._Gradients.rows
    monkeypatch.setattr(module._Gradients, "rows", lambda self, wanted: held.append(len(wanted)) or rows(self, wanted))
    found = ntk(golden_model(), golden_loader(), full=True, chunk=chunk)
    assert found.full_condition == pytest.approx(405.031483, abs=1e-6) and max(held) <= chunk


def test_linear_model_has_the_images_products_for_each_class():
    torch.manual_seed(0)
    model, images = nn.Linear(7, 3, bias=False).double(), torch.randn(4, 7, dtype=torch.float64)
    found = ntk(model, [(images, None)], full=True)
    exact = torch.linalg.eigvalsh(images @ images.T)
    assert found.eigenvalues == pytest.approx(exact.tolist(), rel=1e-10)
    assert found.full_eigenvalues == pytest.approx(exact.repeat_interleave(3).tolist(), rel=1e-10)


def test_small_net_equals_a_dense_computation():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(27, 4))
    images = torch.randn(5, 2, 5, 5)
    model.train()(images)
    found = ntk(model, [(images[:3], None), (images[3:], None)], full=True, chunk=6)
    exact = torch.linalg.eigvalsh(dense_kernel(model.double().eval(), images.double()))
    assert found.full_eigenvalues == pytest.approx(exact.tolist(), rel=1e-8, abs=1e-12)
    assert found.full_condition == pytest.approx(float(exact[-1] / exact[0]), rel=1e-6)


def test_order_of_the_images_does_not_matter_and_scale_of_the_last_layer_does_as_it_must():
    (first, _), (second, _) = golden_loader()
    images = torch.cat((first, second))
    found, turned = (ntk(golden_model(), [(value, None)], full=True) for value in (images, images.flip(0)))
    assert turned.full_eigenvalues == pytest.approx(found.full_eigenvalues, rel=1e-9)
    # gradients of the last layer are the features, whatever its weights; those below grow with them
    last, below = (ntk(golden_model(), [(images, None)], only=(name,)) for name in ("2.weight", "0.weight"))
    model = golden_model()
    model[2].weight.data *= 3
    scaled_last, scaled_below = (ntk(model, [(images, None)], only=(name,)) for name in ("2.weight", "0.weight"))
    assert scaled_last.eigenvalues == pytest.approx(last.eigenvalues, rel=1e-9)
    assert scaled_below.eigenvalues == pytest.approx([9 * value for value in below.eigenvalues], rel=1e-9)


def test_equal_images_are_singular_and_told(tmp_path):
    images = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[3] = images[1]
    found = ntk(golden_model(), [(images, None)], full=True)
    assert found.condition == found.full_condition == math.inf and found.rank < 4
    assert found.duplicates == [(1, 3)] and "1 and 3" in found.summary()
    assert '"condition": "inf"' in found.save(tmp_path)[0].read_text()


def test_more_logits_than_parameters_are_singular():
    images = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ntk(golden_model(), [(images, None)], full=True)
    assert found.full_rank <= 12 < len(found.full_eigenvalues) and found.full_condition == math.inf


@pytest.mark.parametrize("name", ["swin_nano_patch4_window4_32", "cait_nano_patch4_32"])
def test_models_of_fused_ops(name):
    torch.manual_seed(0)
    model = vt.create_model(name, num_classes=3)
    found = ntk(model, [(torch.randn(3, 3, 32, 32), None)], chunk=3)
    assert found.classes == 3 and found.rank == 3 and 1 < found.condition < math.inf


def test_from_the_options_of_the_command_line(tmp_path):
    found = run(Options(model="vit_nano_patch4_32", samples=4, device="cpu", full=True, chunk=40))
    assert found.samples == 4 and len(found.full_eigenvalues) == 40
    assert [path.name for path in found.save(tmp_path)] == ["ntk.json", "ntk.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": []}, "loader must give at least one image"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"only": ("nowhere",)}, "only must name trained parameters"),
        ({"loader": [(torch.full((1, 2), torch.inf), None)]}, "images must be finite"),
    ],
)
def test_bad_input_is_told(change, message):
    arguments = {"loader": golden_loader(), **change}
    with pytest.raises(ValueError, match=message):
        ntk(golden_model(), **arguments)


def test_interrupted_work_keeps_the_classes_that_are_done(monkeypatch, tmp_path):
    gram, calls = module._gram, []

    def interrupted(gradients, rows, *more):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return gram(gradients, rows, *more)

    monkeypatch.setattr(module, "_gram", interrupted)
    (first, _), (second, _) = golden_loader()
    found = ntk(golden_model(), golden_loader(), full=True)
    block = dense_kernel(golden_model(), torch.cat((first, second)))[::2, ::2]
    assert not found.complete and found.averaged == 1 and not found.full_eigenvalues
    assert found.eigenvalues == pytest.approx(torch.linalg.eigvalsh(block).tolist(), rel=1e-9)
    assert len(found.save(tmp_path)) == 2 and "mean over 1 of the classes" in found.summary()
