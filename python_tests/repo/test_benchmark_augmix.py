"""The benchmark of augmentation: its peers make what they should, and the script runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from optional import peer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    peer("torchvision")
    peer("PIL")
    peer("vtkernels._imgops")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import augmix

    return augmix


def test_peers_make_normalised_images(script):
    image = script.photo(32)
    for task in ("augmix", "triplet"):
        for name, make in script.PEERS[task].items():
            made = make(image)()
            for view in made if task == "triplet" else [made]:
                assert view.dtype == torch.float32 and list(view.shape) == [3, 32, 32], name
                lowest, highest = ((bound - torch.tensor(script.MEAN)) / torch.tensor(script.STD) for bound in (0, 1))
                assert (view.amin((1, 2)) >= lowest - 1e-5).all() and (view.amax((1, 2)) <= highest + 1e-5).all(), name


def test_the_script_runs(script, monkeypatch, tmp_path, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["augmix.py", "--quick", "--rounds", "1", "--sides", "32", "--out", str(tmp_path)])
    script.main()
    torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*/augmix_quick.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["task"] for row in rows] == ["augmix", "triplet", "randaugment"]
    for row in rows:
        assert {"vtkernels", "vtkernels_array"} <= set(row["images_per_s"])
        assert row["over"].keys() | row["refused"].keys() == script.PEERS[row["task"]].keys()
    assert "images a second" in capsys.readouterr().out
