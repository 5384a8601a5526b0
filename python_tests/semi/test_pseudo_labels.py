"""Files of pseudo-labels: nothing is lost on the way, what is chosen is what is believed, and what does not belong is told."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtkernels.data import PseudoLabelled, PseudoLabels, create_loader
from vtkernels.data.datasets import create_dataset, unlabelled

CLASSES = ("cat", "dog", "emu")


def drawn(count: int, seed: int = 0, sharpness: float = 2.0) -> PseudoLabels:
    logits = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) * sharpness
    return PseudoLabels.of(logits.softmax(1).numpy(), CLASSES, teacher="runs/first")


def assert_same(one: PseudoLabels, other: PseudoLabels) -> None:
    for name in ("index", "label", "confidence", "probabilities"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.classes, one.pool, one.about) == (other.classes, other.pool, other.about)


@pytest.mark.parametrize("form", ["soft", "hard", "chosen", "none"])
def test_a_file_holds_everything(form, tmp_path):
    labels = {
        "soft": drawn(20),
        "hard": drawn(20).hard(),
        "chosen": drawn(20).confident(0.6).balanced(9),
        "none": drawn(20, sharpness=0.0).confident(0.9),
    }[form]
    labels.save(tmp_path / "deep" / "labels.npz")
    assert_same(PseudoLabels.load(tmp_path / "deep" / "labels.npz"), labels)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["labels.npz"]


def test_numpy_alone_reads_the_documented_columns(tmp_path):
    drawn(5).save(tmp_path / "labels.npz")
    with np.load(tmp_path / "labels.npz", allow_pickle=False) as content:
        kinds = {name: (content[name].dtype.kind, content[name].shape) for name in content.files}
        about = json.loads(str(content["about"]))
    assert kinds == {"about": ("U", ()), "index": ("i", (5,)), "label": ("i", (5,)), "confidence": ("f", (5,)), "probabilities": ("f", (5, 3))}
    assert about == {"format": 1, "classes": list(CLASSES), "pool": 5, "teacher": "runs/first"}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.floats(0.0, 1.0), st.integers(0, 5))
def test_each_class_has_per_class_rows_or_none(count, per_class, threshold, seed):
    confident = drawn(count, seed).confident(threshold)
    assert (confident.confidence >= threshold).all()
    balanced = confident.balanced(per_class)
    for label, (before, after) in enumerate(zip(confident.counts(), balanced.counts(), strict=True)):
        assert after == (per_class if before else 0)
        own = balanced.index[balanced.label == label]
        if before >= per_class:
            # the most confident ones, once each
            assert len(set(own)) == per_class
            left = np.setdiff1d(confident.index[confident.label == label], own)
            rest = drawn(count, seed).confidence[left]
            assert not len(rest) or balanced.confidence[balanced.label == label].min() >= rest.max()
        elif before:
            # all of them, none more than once oftener than another
            repeats = np.bincount(own)[np.unique(own)]
            assert len(repeats) == before
            assert repeats.max() - repeats.min() <= 1


def test_the_published_selection_is_bounded():
    labels = drawn(300).confident(0.3).balanced(130_000)
    assert labels.counts().tolist() == [130_000] * 3
    assert labels.confident(0.3).balanced(130).counts().tolist() == [130] * 3


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_targets_of_a_batch_are_the_teachers(form):
    pool = unlabelled(create_dataset("shapes", "train", count=12, size=8))
    told = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).softmax(1).numpy()
    labels = PseudoLabels.of(told, pool.classes)
    dataset = PseudoLabelled(pool, labels.balanced(4), form)
    images, targets = next(iter(create_loader(dataset, len(dataset))))
    for row, (image, target) in enumerate(zip(images, targets, strict=True)):
        index = dataset.labels.index[row]
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pool[index][0])
        expected = torch.from_numpy(told[index]) if form == "soft" else torch.tensor(told[index].argmax())
        assert torch.equal(target, expected)


def test_what_does_not_belong_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file of pseudo-labels, got no such file"):
        PseudoLabels.load(tmp_path / "labels.npz")
    (tmp_path / "text.npz").write_text("labels")
    with pytest.raises(ValueError, match="expected a complete .npz file without pickled objects"):
        PseudoLabels.load(tmp_path / "text.npz")
    drawn(50).save(tmp_path / "whole.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match="expected a complete .npz file"):
        PseudoLabels.load(tmp_path / "half.npz")
    np.savez(tmp_path / "other.npz", index=np.arange(3))
    with pytest.raises(ValueError, match="got none called about, label, confidence"):
        PseudoLabels.load(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", about=np.array([{"format": 1}], dtype=object), index=np.arange(1), label=np.arange(1), confidence=np.ones(1))
    with pytest.raises(ValueError, match="without pickled objects"):
        PseudoLabels.load(tmp_path / "pickled.npz")
    about = np.array(json.dumps({"format": 2, "classes": [], "pool": 0}))
    np.savez(tmp_path / "later.npz", about=about, index=np.arange(1), label=np.arange(1), confidence=np.ones(1))
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        PseudoLabels.load(tmp_path / "later.npz")
    about = np.array(json.dumps({"format": 1, "classes": ["a"], "pool": 1}))
    np.savez(tmp_path / "far.npz", about=about, index=np.array([7]), label=np.array([0]), confidence=np.ones(1))
    with pytest.raises(ValueError, match=r"far.npz.*index must lie in 0..0, got 7..7"):
        PseudoLabels.load(tmp_path / "far.npz")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"index": np.array([0.0, 1.0])}, r"index must be whole numbers \[N\], got float64 \[2\]"),
        ({"label": np.array([[0], [1]])}, r"label must be whole numbers \[N\], got int64 \[2, 1\]"),
        ({"confidence": np.float32(1.0)}, r"confidence must be numbers \[N\], got float32 \[\]"),
        ({"probabilities": np.array([[0.2, 0.9], [np.nan, 0.5]])}, "probabilities must be finite, at least 0, and sum to 1"),
        ({"about": np.array(json.dumps({"format": 1, "classes": 2, "pool": 2}))}, "expected JSON with format, classes and pool"),
        ({"about": np.array(json.dumps({"format": 1, "classes": ["a", "b"], "pool": None}))}, "expected JSON with format, classes and pool"),
        ({"about": np.array(json.dumps([1, 2]))}, "expected JSON with format, classes and pool"),
    ],
)
def test_files_written_by_hand_are_checked(columns, message, tmp_path):
    whole = {
        "index": np.arange(2),
        "label": np.arange(2),
        "confidence": np.ones(2, dtype=np.float32),
        "about": np.array(json.dumps({"format": 1, "classes": ["a", "b"], "pool": 2})),
    }
    path = tmp_path / "labels.npz"
    np.savez(path, **whole)
    assert len(PseudoLabels.load(path)) == 2
    np.savez(path, **whole | columns)
    with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
        PseudoLabels.load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 3), np.nan), "probabilities must be finite"),
        (np.full((2, 3), 0.5), "sum to 1"),
        (np.array([[1.5, -0.5, 0.0]]), "at least 0"),
        (np.full((2, 2), 0.5), r"have shape \[images, 3\]"),
    ],
)
def test_what_is_no_probability_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabels.of(values, CLASSES)


def test_labels_of_another_pool_are_refused():
    pool = unlabelled(create_dataset("shapes", "train", count=12, size=8))
    with pytest.raises(ValueError, match="of this pool of 12 images, got those of a pool of 5"):
        PseudoLabelled(pool, drawn(5))
    with pytest.raises(ValueError, match="have probabilities for soft targets"):
        PseudoLabelled(pool, drawn(12).hard())
    with pytest.raises(ValueError, match="threshold must lie in 0..1, got nan"):
        drawn(3).confident(float("nan"))
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        drawn(3).balanced(0)
    assert len(PseudoLabels.of(np.zeros((0, 3)), CLASSES).balanced(4)) == 0
