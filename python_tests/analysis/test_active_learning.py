"""Acquisition functions against golden numbers, and a loop that loses and repeats no image."""

import pytest
import torch
from torch import nn

from vtkernels.analysis import active_learning as active

P = torch.tensor([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.9, 0.05, 0.05]], dtype=torch.float64)


def test_golden_numbers():
    for score, expected in (
        (active.entropy, [1.029653, 1.098513, 0.394398]),
        (active.margin, [0.2, 0.01, 0.85]),
        (active.least_confidence, [0.5, 0.66, 0.1]),
    ):
        torch.testing.assert_close(score(P), torch.tensor(expected, dtype=torch.float64), atol=5e-7, rtol=0)
    passes = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]], dtype=torch.float64)
    torch.testing.assert_close(active.bald(passes), torch.tensor([0.368064, 0.0], dtype=torch.float64), atol=5e-7, rtol=0)


def test_bald_is_never_negative():
    passes = torch.randn(7, 50, 5).mul(4).softmax(-1)
    assert (active.bald(passes) >= 0).all()
    # certain of all classes at once: no logarithm of zero
    assert active.bald(torch.eye(3)[:, None]).item() == pytest.approx(torch.log(torch.tensor(3.0)).item())


def test_k_centre_takes_the_farthest_first():
    points = torch.tensor([[0.0], [1], [2], [10], [6]])
    assert active.k_centre(points, torch.tensor([0]), 3).tolist() == [3, 4, 2]
    # equal images are taken last, each once
    same = torch.zeros(4, 2)
    assert sorted(active.k_centre(same, torch.tensor([1]), 3).tolist()) == [0, 2, 3]


def test_stratified_start_has_all_classes():
    labels = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    assert sorted(labels[active.stratified(labels, 6, 0)].tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(set(active.stratified(labels, 30, 1).tolist())) == 30


class Line(nn.Module):
    """Class 1 above the threshold: the surest far from it."""

    def __init__(self, threshold: float):
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-9.0], [9.0]]))
            self.head.bias.copy_(torch.tensor([9 * threshold, -9 * threshold]))

    def forward(self, x):
        return self.head(self.drop(x))


def train_line(images, labels, seed) -> nn.Module:
    """The threshold halfway between the classes, as far as labels tell."""
    return Line(((images[labels == 0].max() + images[labels == 1].min()) / 2).item())


def line(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    points = torch.linspace(0, 1, count)[torch.randperm(count)][:, None]
    return points, (points[:, 0] > 0.37).long()


def test_uncertainty_finds_a_threshold_that_chance_does_not(tmp_path):
    """Known answer: on a line, asking near the boundary halves the interval, asking anywhere does not."""
    result = active.learn(train_line, line(), line(1000), initial=4, batch=1, rounds=8, seeds=3, passes=4)
    assert result.complete and result.sizes == list(range(4, 13))
    accuracy = {strategy: result.mean_and_error(strategy)[0][-1] for strategy in active.STRATEGIES}
    for strategy in ("least_confidence", "entropy", "margin"):
        assert accuracy[strategy] > 0.994 > accuracy["random"]
    for runs in result.chosen.values():
        for chosen in runs:
            assert len(chosen) == len(set(chosen)) == 12
    # all strategies of a run start alike
    assert len({tuple(runs[1][:4]) for runs in result.chosen.values()}) == 1
    assert {path.name for path in result.save(tmp_path)} == {"active_learning.json", "active_learning.png"}


def test_same_seeds_same_choices():
    pool, test = line(), line(50)
    first, second = (active.learn(train_line, pool, test, initial=4, batch=2, rounds=2, seeds=2, passes=3) for _ in range(2))
    assert first.chosen == second.chosen and first.accuracy == second.accuracy


def test_interrupted_loop_keeps_what_is_done(tmp_path):
    calls = []

    def train(images, labels, seed):
        calls.append(0)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return train_line(images, labels, seed)

    result = active.learn(train, line(), line(50), strategies=("random", "margin"), initial=4, batch=2, rounds=2, seeds=2)
    assert not result.complete
    assert [len(run) for run in result.accuracy["random"]] == [3, 1] and [len(run) for run in result.accuracy["margin"]] == [3]
    assert len(result.save(tmp_path)) == 2


def test_default_problem_learns():
    options = active.Options(strategies=("random", "bald"), rounds=1, seeds=1, pool=100, updates=80, passes=3, device="cpu")
    result = active.run(options)
    assert result.sizes == [20, 40] and all(runs[0][-1] > 0.5 for runs in result.accuracy.values())


def test_bad_input_is_told():
    pool, test = line(), line(50)
    with pytest.raises(ValueError, match="strategies must be among"):
        active.learn(train_line, pool, test, strategies=("luck",))
    with pytest.raises(ValueError, match="200.*fewer rounds"):
        active.learn(train_line, pool, test, batch=100, rounds=3)
    with pytest.raises(ValueError, match="one class"):
        active.learn(train_line, (pool[0], torch.zeros(200)), test)
    with pytest.raises(ValueError, match="at least one"):
        active.learn(train_line, pool, (test[0][:0], test[1][:0]))
    with pytest.raises(ValueError, match="initial must be at least 1"):
        active.learn(train_line, pool, test, initial=0)
    with pytest.raises(ValueError, match="have dropout"):
        active.dropout_passes(nn.Linear(1, 2), pool[0], 3)
    with pytest.raises(ValueError, match="finite logits"):
        active.learn(lambda *_: Line(float("nan")), pool, test, rounds=0)
