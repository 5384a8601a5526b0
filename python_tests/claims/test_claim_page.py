"""docs/claims.md says what the committed results say, and these what their single runs say."""

import json

import pytest

from benchmarks.claims import judgement, table

DEVICES = table.results_of(table.RESULTS)
RESULTS = [pytest.param(result, id=f"{folder.parent.name}-{result['file']}") for folder, results in DEVICES.items() for result in results]


def test_page_agrees_with_the_results():
    assert table.page(DEVICES, table.PAGE.parent) == table.PAGE.read_text(), "run python -m benchmarks.claims.table"


@pytest.mark.parametrize("result", RESULTS)
def test_verdicts_follow_from_the_single_runs(result):
    pytest.importorskip("scipy")
    for part in result["parts"]:
        runs = [result["arms"][arm]["metrics"].get(part["metric"], {"by_seed": {}})["by_seed"] for arm in part["terms"]]
        seeds = set.intersection(*map(set, runs))
        values = [sum(factor * run[seed] for factor, run in zip(part["terms"].values(), runs, strict=True)) for seed in seeds]
        found = judgement.interval(values) if values else None
        assert part.get("count", 0) == len(seeds)
        if found is None or found.count < judgement.FEWEST_SEEDS:
            assert part["verdict"] == judgement.UNKNOWN
            continue
        # files keep five digits
        bounds = [part["mean"], part["low"], part["high"]]
        assert bounds == pytest.approx([found.mean, found.low, found.high], rel=1e-3, abs=5e-3)
        if min(abs(bound) for bound in (found.mean, found.low, found.high)) > 5e-3:
            assert part["verdict"] == judgement.verdict(found)


@pytest.mark.parametrize("result", RESULTS)
def test_results_are_whole(result):
    """Every arm was run with every seed, and has a picture."""
    counts = {max(len(metric["by_seed"]) for metric in arm["metrics"].values()) for arm in result["arms"].values()}
    assert len(counts) == 1
    assert min(counts) >= 3
    assert all(part.get("count") in counts for part in result["parts"]), "a part whose arms lack its metric"
    (folder,) = (folder for folder, results in DEVICES.items() if result in results)
    assert (folder / f"{result['file']}.png").is_file()


def test_another_result_makes_another_page():
    folder, results = next(iter(DEVICES.items()))
    changed = json.loads(json.dumps(results))
    changed[0]["parts"][0].update(verdict=judgement.OPPOSITE, mean=-1.0, low=-2.0, high=-0.5)
    page = table.page({folder: changed}, table.PAGE.parent)
    assert f"The opposite held here: {changed[0]['parts'][0]['says']} (-1.00 [-2.00, -0.50]" in page
    assert page != table.PAGE.read_text()
