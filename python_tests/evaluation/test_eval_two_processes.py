"""Two processes measure what one does, each sample once."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from evaluation_cases import NAME, Linear, digits, loader_of, read, weights, whole
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from two_processes import on_two_processes, processes  # noqa: F401

from vtkernels import evaluation as ev
from vtkernels.data import loader
from vtkernels.evaluation import EvaluationOptions, command

for needed in ("sklearn", "safetensors", "matplotlib", "PIL"):
    pytest.importorskip(needed)


@on_two_processes
def test_two_processes_find_what_one_does(rank):
    torch.manual_seed(0)
    model = Linear()
    # shares of equal length, of unequal length and number of batches, and an empty one
    for count, batch_size in ((36, 4), (37, 4), (9, 4), (1, 4), (33, 16)):
        dataset = digits(count)
        single = whole(model, dataset)
        shared = ev.predict(model, loader_of(dataset, batch_size))
        assert torch.equal(shared.targets, single.targets)
        torch.testing.assert_close(shared.logits, single.logits, rtol=1e-6, atol=1e-6)
        # the same logits are measured in every process
        everywhere = [None, None]
        torch.distributed.all_gather_object(everywhere, ev.score(shared).metrics)
        assert everywhere[0] == everywhere[1]
        assert everywhere[0]["top1"] == ev.score(single).metrics["top1"]


@on_two_processes
def test_padding_of_a_sampler_is_dropped(rank):
    torch.manual_seed(0)
    images, targets = torch.randn(13, 3, 8, 8), torch.arange(13) % 10
    dataset = TensorDataset(images, targets)
    # wrapped, and with an odd number of samples: the wrapper's own synchronisation would wait for ever
    model = DistributedDataParallel(Linear())
    for shuffle in (False, True):
        sampler = DistributedSampler(dataset, shuffle=shuffle)
        assert len(sampler) == 7
        found = ev.predict(model, DataLoader(dataset, batch_size=3, sampler=sampler))
        assert sorted(found.targets.tolist()) == sorted(targets.tolist())
    # a plain loader gives every process the whole set
    assert len(ev.predict(model, DataLoader(dataset, batch_size=3))) == 13
    several = torch.eye(10, dtype=torch.bool)[targets]
    mine = [(images[rank::2], several[rank::2])]
    found = ev.predict(model, mine, gather=True)
    assert torch.equal(found.targets, several)
    with pytest.raises(ValueError, match="gather must be told"):
        ev.predict(model, mine)
    with pytest.raises(ValueError, match="drop_last=True"):
        ev.predict(model, DataLoader(dataset, batch_size=3, sampler=DistributedSampler(dataset, drop_last=True)))


@on_two_processes
def test_a_sharded_model_keeps_step(rank):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model, plain = Linear(), Linear()
    plain.load_state_dict(model.state_dict())
    dataset = digits(9)
    single = whole(plain, dataset)
    # 5 and 4 samples: three batches and two, for each of which the parameters come together
    shared = ev.predict(fully_shard(model, reshard_after_forward=True), loader_of(dataset, 2))
    torch.testing.assert_close(shared.logits, single.logits, rtol=1e-5, atol=1e-6)


@on_two_processes
def test_two_processes_share_each_set(rank, tmp_path):
    checkpoint = [weights(tmp_path / "weights") if rank == 0 else None]
    torch.distributed.broadcast_object_list(checkpoint)
    chosen = {"corruptions": "generated", "corruption_names": ("fog",), "severities": (3,), "attack": "pgd", "steps": 2}
    # a disk of each process's own, of which the first one's counts
    asked = EvaluationOptions(model=NAME, checkpoint=checkpoint[0], data="digits", limit=21, out=tmp_path / f"of {rank}", **chosen)
    assert command.run(asked) == 0
    torch.distributed.barrier()
    assert not (tmp_path / "of 1").exists()
    first = replace(asked, out=tmp_path / "of 0")
    assert len((first.out / "done.jsonl").read_text().splitlines()) == 4
    assert read(first)["sets"]["fog/3"]["count"] == 21
    assert command.run(replace(asked, severities=(3, 4))) == 0, "the second process knows what the first has done"
    with pytest.raises(ValueError, match="one with another limit"):
        command.run(replace(asked, limit=5))


@on_two_processes
def test_images_are_attacked_alike_whoever_has_them(rank, tmp_path):
    checkpoint = [weights(tmp_path / "weights") if rank == 0 else None]
    torch.distributed.broadcast_object_list(checkpoint)
    asked = EvaluationOptions(model=NAME, checkpoint=checkpoint[0], data="digits", limit=21, attack="pgd", steps=2, epsilon=0.1)
    shared, alone = (replace(asked, out=tmp_path / f"{name} of {rank}", batch_size=size) for name, size in (("shared", 4), ("alone", 64)))
    command.run(shared)
    with mock.patch.object(loader, "_place", lambda *_: {"rank": 0, "world": 1}):
        command.run(alone)
    if rank == 0:
        assert read(shared)["sets"]["pgd"] == pytest.approx(read(alone)["sets"]["pgd"], abs=1e-5)
