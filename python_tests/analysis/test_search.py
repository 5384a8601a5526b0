"""The search finds the best of spaces that are known as a whole, the same way twice, and keeps to its budget."""

import itertools
import math
import random

import pytest
import torch

from vtkernels.analysis import search
from vtkernels.analysis.search import CellSpace, Coefficients, candidates, evolve, plan, scaling_grid
from vtkernels.analysis.search.cells import Cells, build, sources
from vtkernels.models.nasnet import NORMAL, REDUCTION, CellPlan

TOY = CellSpace(blocks=1, kinds=("sep3", "avg", "id"))


def tabulated() -> dict[Cells, float]:
    """All 1296 pairs of cells of one block, with a score that rewards some parts and one combination of them."""
    operations = list(itertools.product(TOY.kinds, sources(0)))
    blocks = [((first, second),) for first in operations for second in operations]
    value = {("sep3", "cur"): 3.0, ("sep3", "prev"): 2.0, ("avg", "cur"): 1.5, ("id", "prev"): 1.0, ("avg", "prev"): 0.5, ("id", "cur"): 0.0}
    table = {}
    for cells in itertools.starmap(Cells, itertools.product(blocks, blocks)):
        (normal,), (reduction,) = cells
        score = sum(value[one] for one in (*normal, *reduction))
        # the same operation twice is worth less than two that complement each other
        score -= 2.0 * (normal[0] == normal[1]) + 2.0 * (reduction[0] == reduction[1])
        table[cells] = score + 1.0 * (normal[0] == ("id", "prev"))
    return table


@pytest.mark.parametrize("seed", range(4))
def test_evolution_finds_the_best_of_a_tabulated_space(seed):
    table, asked = tabulated(), []
    best = max(table.values())

    def evaluate(cells: Cells) -> float:
        asked.append(cells)
        return table[cells]

    history = evolve(TOY.draw, TOY.mutate, evaluate, evaluations=400, population=30, sample=8, seed=seed)
    assert history.complete and history.best[1] == best
    # each is evaluated once, and most of the space never is
    assert len(asked) == len(set(asked)) < len(table) / 3


def test_evolution_is_repeatable_and_better_than_chance():
    table = tabulated()
    first, second = (evolve(TOY.draw, TOY.mutate, table.__getitem__, evaluations=100, population=20, sample=5, seed=1) for _ in range(2))
    assert first.candidates == second.candidates and first.scores == second.scores
    drawn, bred = first.scores[:20], first.scores[-20:]
    assert sum(bred) / 20 > sum(drawn) / 20 + 1
    assert first.best_so_far() == sorted(first.best_so_far())


def test_the_oldest_dies_even_if_it_is_the_best():
    """A population of one whose scores fall: every parent is the last child."""
    history = evolve(lambda _: 0, lambda parent, _: parent + 1, lambda one: -one, evaluations=5, population=1, sample=1)
    assert history.candidates == [0, 1, 2, 3, 4] and history.best == (0, 0.0)


def test_nan_has_no_children():
    history = evolve(lambda _: 0, lambda parent, draw: draw.randrange(9), lambda one: math.nan if one == 0 else one, evaluations=30, population=3, sample=3)
    assert history.best == (8, 8.0)


def test_interrupted_evolution_keeps_what_is_done():
    def evaluate(one: int) -> float:
        if one == 3:
            raise KeyboardInterrupt
        return one

    history = evolve(lambda _: 0, lambda parent, _: parent + 1, evaluate, evaluations=9, population=1, sample=1)
    assert not history.complete and history.scores == [0, 1, 2]


def test_a_mutation_changes_one_operation():
    space, generator = CellSpace(blocks=4), random.Random(0)
    cells = space.draw(generator)
    for _ in range(200):
        child = space.mutate(cells, generator)
        changed = [(a, b) for old, new in zip(cells, child, strict=True) for x, y in zip(old, new, strict=True) for a, b in zip(x, y, strict=True) if a != b]
        assert len(changed) == 1 and sum(p != q for p, q in zip(*changed[0], strict=True)) == 1
        cells = child


def test_every_cell_of_the_space_is_a_network():
    """Published blocks among them, of which NASNet puts out more than those that nobody reads; odd maps, and gradients."""
    assert plan(REDUCTION.blocks) == CellPlan(REDUCTION.blocks, (2, 3, 4)) and plan(NORMAL.blocks).outputs == (0, 1, 2, 3, 4)
    generator = random.Random(0)
    for _ in range(8):
        net = build(CellSpace(blocks=3).draw(generator), num_classes=5, size=9, filters=4)
        logits = net(torch.randn(2, 3, 9, 9))
        logits.square().sum().backward()
        assert logits.shape == (2, 5) and net.last_linear.weight.grad.abs().sum() > 0


def test_scaling_keeps_to_its_budget_and_finds_the_known_best():
    """A score whose best is the published one: 1.2, 1.1, 1.15."""
    among = candidates(2.0, 0.05, 0.05)
    assert Coefficients(1.2, 1.1, 1.15) in among
    assert all(abs(one.cost - 2) <= 0.1 + 1e-9 and min(one) >= 1 for one in among)
    grid = scaling_grid(lambda one: -math.dist(one, (1.2, 1.1, 1.15)), among, budget=2.0, tolerance=0.05)
    assert grid.complete and grid.best == ((1.2, 1.1, 1.15), 0.0)
    assert grid.best[0].cost == pytest.approx(1.2 * 1.1**2 * 1.15**2)
    assert grid.best[0].scaled(3).cost == pytest.approx(grid.best[0].cost ** 3)
    few = scaling_grid(lambda one: 0.0, among, budget=2.0, tolerance=0.05, limit=5)
    assert len(few.scores) == 5 and set(few.coefficients) <= set(among)


def test_run_at_the_smallest_scale(tmp_path):
    cells = {"evaluations": 4, "population": 2, "sample": 1, "blocks": 1, "filters": 2}
    small = {**cells, "base_size": 8, "base_width": 1.0, "step": 0.2, "limit": 2, "epochs": 1, "train": 60, "valid": 50}
    results = [search.run(search.Options(**small, device="cpu")) for _ in range(2)]
    first, second = results
    assert first.complete and first.cells == second.cells and first.scores == second.scores and first.scaled_scores == second.scaled_scores
    assert len(first.scores) == 4 and len(first.macs) == len(first.costs) == 2
    assert abs(first.best_coefficients.cost - 2) <= 0.2
    # not by the formula alone
    assert max(first.macs) <= 2.2 * first.base_macs
    assert [path.name for path in first.save(tmp_path)] == ["search.json", "search_cells.png", "search_scaling.png"]
    assert "depth" in first.summary() and "normal" in first.summary()


@pytest.mark.parametrize(
    "change", [{"parts": ("luck",)}, {"epochs": 0}, {"sample": 99}, {"train": 5000}, {"blocks": 0}, {"base": "resnet_nano", "parts": ("scaling",)}]
)
def test_bad_options_of_the_search_are_told(change):
    with pytest.raises(ValueError, match="must"):
        search.run(search.Options(**change, device="cpu"))


def test_bad_grids_are_told():
    with pytest.raises(ValueError, match="budget must be at least 1"):
        candidates(0.5)
    with pytest.raises(ValueError, match="fine enough"):
        candidates(1.9, 0.001, 0.5)
    with pytest.raises(ValueError, match="cost 2.0 within"):
        scaling_grid(lambda one: 0.0, [Coefficients(2.0, 2.0, 2.0)])
