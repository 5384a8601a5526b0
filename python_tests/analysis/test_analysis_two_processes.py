"""Two processes with a share of the data each find what one finds with all of it."""

import torch
from known_problems import golden_loader, golden_model
from torch.nn.parallel import DistributedDataParallel

from vtkernels.analysis.landscape import landscape
from vtkernels.analysis.sharpness import sharpness

OPTIONS = {"dtype": torch.float64, "eigenvalues": 2, "trace_samples": 3, "draws": 2}


def search(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    model = DistributedDataParallel(golden_model())
    found = sharpness(model, golden_loader()[rank : rank + 1], **OPTIONS)
    surface = landscape(model, golden_loader()[rank : rank + 1], points=3)
    # one process without a sample has its part in every sum all the same
    lonely = sharpness(model, golden_loader() if rank else [], **OPTIONS)
    torch.save([found.to_json(), surface.to_json(), lonely.to_json()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_shares_of_the_data_add_up(tmp_path):
    torch.multiprocessing.spawn(search, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    alone = [sharpness(golden_model(), golden_loader(), **OPTIONS).to_json(), landscape(golden_model(), golden_loader(), points=3).to_json()]
    for found, expected in zip((*first[:2], first[2]), (*alone, alone[0]), strict=True):
        for key, value in expected.items():
            if isinstance(value, float):
                assert abs(found[key] - value) <= 1e-9 * max(abs(value), 1), key
    assert first[0]["samples"] == first[2]["samples"] == 3
