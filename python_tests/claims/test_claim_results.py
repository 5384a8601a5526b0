"""The rule by which claims are judged, sessions that go on where they were stopped, and one claim from end to end."""

import json
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.claims import data_hunger, distillation, drloc, frozen_features, noisy_student, sam, table
from benchmarks.claims.arms import accuracy, sized
from benchmarks.claims.claim import Arm, Claim, Part, Setting, more
from benchmarks.claims.command import main
from benchmarks.claims.judgement import HELD, NOT, OPPOSITE, UNKNOWN, WEAKLY, Interval, interval, verdict
from benchmarks.claims.session import Session
from vtkernels.recipes import Model, SelfTraining, get_recipe

# tenths, as accuracies are: nearly equal floats would test rounding
NUMBERS = st.lists(st.integers(-1000, 1000).map(lambda tenths: tenths / 10), min_size=2, max_size=12)


@given(NUMBERS)
@settings(max_examples=40, deadline=None)
def test_interval_is_that_of_scipys_t_test(values):
    found = interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    if found.low == found.high:
        return
    assert found.low == pytest.approx(expected.low, rel=1e-6, abs=1e-7)
    assert found.high == pytest.approx(expected.high, rel=1e-6, abs=1e-7)


def test_paired_difference_is_scipys_paired_test():
    with_it, without = [90.1, 88.0, 91.5, 89.9, 92.0], [88.9, 87.1, 91.6, 88.0, 90.2]
    results = {"a": dict(enumerate({"top1": x} for x in with_it)), "b": dict(enumerate({"top1": x} for x in without))}
    found = more("a beats b", "a", "b").interval(results)
    expected = stats.ttest_rel(with_it, without).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.count == 5


def test_interval_of_known_values():
    # mean 2, deviation 1, t(0.975, 2) = 4.302653
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.302653 / 3**0.5, abs=1e-6)
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Interval(1.0, 0.1, 1.9, 5), HELD),
        (Interval(1.0, -0.1, 2.1, 5), WEAKLY),
        (Interval(1.0, 0.0, 2.0, 5), WEAKLY),
        (Interval(-0.1, -1.0, 0.8, 5), NOT),
        (Interval(0.0, 0.0, 0.0, 5), NOT),
        (Interval(-1.0, -1.9, -0.1, 5), OPPOSITE),
        (Interval(5.0, None, None, 1), UNKNOWN),
        (Interval(1.0, 1.0, 1.0, 2), UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_verdict(found, expected):
    assert verdict(found) == expected


def test_pairs_are_of_one_seed_and_need_all_arms():
    results = {"a": {0: {"top1": 3.0}, 1: {"top1": 5.0}, 2: {"top1": 9.0}}, "b": {0: {"top1": 1.0}, 2: {"top1": 4.0}, 3: {"top1": 0.0}}}
    assert more("", "a", "b").differences(results) == {0: 2.0, 2: 5.0}
    # a run that diverged has no eigenvalue
    assert more("", "a", "b", "log_lambda").interval(results) is None
    gain_of_gains = Part(says="", terms={"a": 2.0, "b": -0.5})
    assert gain_of_gains.differences(results) == {0: 5.5, 2: 16.0}


def test_claim_refuses_parts_of_unknown_arms():
    arm = Arm(name="a", recipe=get_recipe("smoke"), measure=accuracy)
    with pytest.raises(ValueError, match="got b"):
        Claim(name="x", title="", says="", source="", arms=(arm,), parts=(more("", "a", "b"),))
    with pytest.raises(ValueError, match="same name twice"):
        Claim(name="x", title="", says="", source="", arms=(arm, arm), parts=())


def test_all_shares_make_about_as_many_updates():
    recipes = [sized(get_recipe("swin_t_drloc"), Setting(), fraction=fraction) for fraction in drloc.FRACTIONS]
    images = [int(1442 * recipe.data.fraction) for recipe in recipes]
    updates = [recipe.train.epochs * (count // recipe.data.batch_size) for recipe, count in zip(recipes, images, strict=True)]
    assert max(updates) / min(updates) < 1.2
    # the weight of DRLOC rises and falls in step
    assert [recipe.task.span / recipe.train.epochs for recipe in recipes] == pytest.approx([300 / 101] * 3, rel=0.02)


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_arms_differ_in_what_the_claim_is_about(scale):
    for claim in (drloc.claim(Setting(scale=scale)), sam.claim(Setting(scale=scale))):
        recipes = {arm.name: arm.recipe for arm in claim.arms}
        for part in claim.parts:
            if len(part.terms) == 2 and ("gains by" in part.says or "SAM raises" in part.says):
                better, worse = (recipes[name] for name in part.terms)
                field = "task" if claim.name == "drloc" else "sam"
                assert getattr(better, field) != getattr(worse, field)
                assert replace(better, **{field: getattr(worse, field)}) == worse


def few_updates(values=(1.0, 2.0)) -> Claim:
    recipe = get_recipe("smoke")
    recipe = replace(
        recipe,
        schedule=replace(recipe.schedule, warmup=0),
        train=replace(recipe.train, epochs=1),
        data=replace(recipe.data, fraction=0.1),
        model=Model(name="resnet_nano"),
    )
    trained = []

    def measure(trainer, recipe):
        trained.append(recipe.train.seed)
        return {"top1": values[recipe.train.seed]}

    claim = Claim(name="x", title="", says="", source="", arms=(Arm(name="a", recipe=recipe, measure=measure),), parts=())
    return claim, trained


def test_session_goes_on_with_what_is_missing(tmp_path):
    claim, trained = few_updates()
    assert Session(claim, tmp_path / "x").run([0]) == {"a": {0: {"top1": 1.0}}}
    again = Session(claim, tmp_path / "x")
    assert again.run([0, 1], minutes=0) == {"a": {0: {"top1": 1.0}}}
    assert again.run([0, 1], only="no such arm") == {"a": {0: {"top1": 1.0}}}
    assert again.run([0, 1]) == {"a": {0: {"top1": 1.0}, 1: {"top1": 2.0}}}
    assert trained == [0, 1]
    # another recipe is another run
    changed = replace(claim.arms[0], recipe=replace(claim.arms[0].recipe, data=replace(claim.arms[0].recipe.data, fraction=0.05)))
    Session(replace(claim, arms=(changed,)), tmp_path / "x").run([0])
    assert trained == [0, 1, 0]


def test_claims_share_what_both_train(tmp_path):
    claim, trained = few_updates()
    Session(claim, tmp_path / "x").run([0])
    other = Session(replace(claim, name="y"), tmp_path / "y")
    assert other.run([0, 1]) == {"a": {0: {"top1": 1.0}, 1: {"top1": 2.0}}}
    assert trained == [0, 1] and other.known(replace(claim.arms[0], keep=True), 0) is None


def test_students_learn_from_the_teacher_of_their_seed(tmp_path):
    claim = distillation.claim(Setting(updates=45))
    session = Session(claim, tmp_path)
    student = next(arm for arm in claim.arms if arm.name == distillation.HARD)
    assert session.recipe(student, 3).task.teacher == str(tmp_path / "teacher" / "3")
    assert session.recipe(student, 3).data.fraction_seed == session.recipe(student, 3).train.seed == 3


def test_an_arm_may_train_by_itself_or_begin_with_anothers_weights(tmp_path):
    claim, _ = few_updates()
    first = replace(claim.arms[0], name="first", measure=accuracy, keep=True)
    given = []

    def train(recipe, folder, taught, device):
        given.append((recipe.train.seed, folder, taught))
        return {"top1": 50.0}

    arms = (
        first,
        Arm(name="tuned", recipe=first.recipe, measure=accuracy, teacher="first"),
        Arm(name="own", recipe=first.recipe, train=train, teacher="first"),
    )
    session = Session(replace(claim, arms=arms), tmp_path)
    results = session.run([1])
    assert session.recipe(arms[1], 1).model.checkpoint == str(tmp_path / "first" / "1")
    assert results["own"][1] == {"top1": 50.0} and given == [(1, tmp_path / "own" / "1", tmp_path / "first" / "1")]
    assert results["tuned"][1]["train_loss"] < results["first"][1]["train_loss"]
    # the same elsewhere, but not after another teacher
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert Session(session.claim, tmp_path / "moved").known(arms[1], 1) == results["tuned"][1]
    other = replace(first, recipe=replace(first.recipe, data=replace(first.recipe.data, fraction=0.05)))
    assert Session(replace(claim, arms=(other, *arms[1:])), tmp_path / "moved").known(arms[1], 1) is None
    with pytest.raises(ValueError, match="either a measure or a training of its own, got both"):
        replace(arms[2], measure=accuracy)


def test_a_student_is_the_next_ones_teacher(tmp_path):
    # two of the three epochs are for the rate to rise
    claim = noisy_student.claim(Setting(updates=3 * noisy_student.UPDATES_PER_EPOCH))
    # so early no teacher is sure of anything
    believing = [replace(arm, recipe=replace(arm.recipe, unlabelled=replace(arm.recipe.unlabelled, confidence=0.0))) for arm in claim.arms[1:]]
    claim = replace(claim, arms=(claim.arms[0], *believing))
    session = Session(claim, tmp_path)
    results = session.run([0])
    assert set(results) == {noisy_student.TEACHER, *noisy_student.STUDENTS}
    assert all(0 < runs[0]["top1"] <= 100 for runs in results.values())
    plans = [SelfTraining.load(session.place(arm, 0)) for arm in claim.arms[1:]]
    assert [plan.teacher.removeprefix(str(tmp_path)) for plan in plans] == [
        "/teacher/0",
        "/first-student/0/cycle-1/student/final",
        "/second-student/0/cycle-1/student/final",
    ]
    assert len({plan.recipe.train.seed for plan in plans}) == 3


@pytest.mark.parametrize("module", [noisy_student, frozen_features])
def test_data_of_another_claim_are_refused(module):
    with pytest.raises(SystemExit, match="--data: expected (digits|shapes) for this claim at tiny scale, got cifar10; leave it out"):
        main(module.claim, ["--data", "cifar10", "--list"])


def test_runs_from_before_a_recipe_gained_a_field_are_known(tmp_path):
    claim, _ = few_updates()
    (first,) = claim.arms
    second = replace(first, name="second")
    session = Session(claim, tmp_path)
    for arm in (first, second):
        meaning = session.meaning(arm, 0)
        del meaning["recipe"]["model"]["head_bias"]
        place = session.place(arm, 0) / "result.json"
        place.parent.mkdir(parents=True)
        if arm is second:
            meaning["recipe"]["model"]["of_old"] = 1
        place.write_text(json.dumps({"of": meaning, "metrics": {"top1": 50.0}, "seconds": 1.0}))
    assert session.known(first, 0) == {"top1": 50.0}
    # one that knew a field which is no more is another recipe
    assert session.known(second, 0) is None
    other = replace(first, recipe=replace(first.recipe, model=replace(first.recipe.model, head_bias=-10.0)))
    assert session.known(other, 0) is None


def test_a_run_is_known_wherever_its_teachers_runs_lie(tmp_path):
    claim, _ = few_updates()
    (first,) = claim.arms
    second, third = replace(first, name="second", teacher=first.name), replace(first, name="third", teacher="second")

    def session(folder: str, *arms: Arm) -> Session:
        return Session(replace(claim, arms=arms, parts=()), tmp_path / folder / "claim")

    there = session("there", first, second, third)
    place = there.place(third, 0) / "result.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"of": there.meaning(third, 0), "metrics": {"top1": 50.0}, "seconds": 1.0}))
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    assert session("here", first, second, third).known(third, 0) == {"top1": 50.0}
    # a teacher that begins with other weights is another teacher
    untaught = replace(second, teacher=None, recipe=replace(second.recipe, model=replace(second.recipe.model, checkpoint="other.pt")))
    assert session("here", untaught, third).known(third, 0) is None


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_features_differ_in_the_weights_alone(scale, tmp_path):
    claim = frozen_features.claim(Setting(scale=scale))
    session = Session(claim, tmp_path)
    for part in claim.parts:
        trained, random = (session.recipe(arm, 3) for name in part.terms for arm in claim.arms if arm.name == name)
        assert trained.task.frozen and trained.model.checkpoint and random.model.checkpoint is None
        assert replace(trained, name="", model=random.model) == replace(random, name="")
        assert replace(trained.model, checkpoint=None) == random.model


def test_a_claim_from_end_to_end(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    places = ["--updates", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "results"), "--device", "cpu"]
    assert main(data_hunger.claim, [*places, "--seeds", "2", "--only", "ResNet, 100"]) == 0
    (path,) = (tmp_path / "results").glob("*/claims/*.json")
    written = json.loads(path.read_text())
    assert written["environment"]["versions"]["torch"] and written["scale"] == "tiny"
    assert set(written["arms"]["ResNet, 100 %"]["metrics"]["top1"]["by_seed"]) == {"0", "1"}
    assert {part["verdict"] for part in written["parts"]} == {UNKNOWN}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    page = tmp_path / "claims.md"
    assert table.main(["--results", str(tmp_path / "results"), "--page", str(page)]) == 0
    told = capsys.readouterr().out
    assert "Data hunger" in told and "minutes of one core" in told
    assert "| ResNet beats ViT on 10 % | no runs | not known |" in page.read_text()
    assert main(data_hunger.claim, [*places, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 18
