"""Multiplications against published counts, memory against tensors one can count, and a clock."""

import pytest
import torch
from torch import nn

import vtkernels as vt
from vtkernels.analysis import throughput

# published to so many digits
COUNTED = {
    "vit_tiny_patch16_224": 0.01,
    "swin_tiny_patch4_window7_224": 0.01,
    "cait_xxs24_224": 0.01,
    "resnet18": 0.01,
    "nasnetamobile": 0.001,
    "t2t_vit_7": 0.05,
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = vt.create_model(name)
    images = torch.empty(1, 3, *model.config.size, device="meta")
    assert throughput.count_macs(model, images) / 1e9 == pytest.approx(vt.model_info(name).gmacs, abs=COUNTED[name])


def test_counts_of_known_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    expected = 16 * 9 * 3 * 8 + 8 * 16 * 5
    assert throughput.count_macs(net, torch.zeros(7, 3, 4, 4)) == expected


class Three(nn.Module):
    """At the peak the input and three tensors of its size are alive, though four are made."""

    def forward(self, x):
        y = x + 1
        z = y * 2
        del y
        w = z + 1
        return w + z


def test_peak_is_what_is_alive():
    x = torch.zeros(1000)
    assert throughput.peak_memory(nn.Sequential(Three(), nn.Identity()), x) == 4 * x.nbytes
    assert throughput.peak_memory(nn.Sequential(nn.Linear(1000, 10)), x[None]) == x.nbytes + (10 * 1001 + 10) * 4


def test_run_gives_a_row_each(tmp_path):
    options = throughput.Options(models=("vit_nano_patch4_32", "resnet_nano"), batch_size=2, warmup=1, timed=3, device="cpu")
    result = throughput.run(options)
    assert result.complete and [row.name for row in result.rows] == list(options.models)
    for row in result.rows:
        assert 0 < row.slowest <= row.images_per_second <= row.fastest
        assert row.memory > 4 * row.parameters
    assert {path.name for path in result.save(tmp_path)} == {"throughput.json", "throughput.png"}
    assert "resnet_nano" in result.summary()


def test_training_mode_is_kept():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    net[0].eval()
    throughput.measure(net, torch.zeros(2, 4), warmup=0, timed=1)
    assert net.training and net[1].training and not net[0].training


@pytest.mark.parametrize("change", [{"models": ()}, {"timed": 0}, {"batch_size": 0}, {"warmup": -1}, {"dtype": "int8"}, {"models": ("no_such",)}])
def test_bad_options_are_told(change):
    with pytest.raises(ValueError, match="must|no model"):
        throughput.run(throughput.Options(**{"batch_size": 1, "warmup": 0, "timed": 1, "models": ("resnet_nano",), **change}))
