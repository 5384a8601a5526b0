"""`vtkernels eval`: all sets in one go, kept as they are done, continued after an interruption."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from evaluation_cases import NAME, read, weights

import vtkernels as vt
from vtkernels.evaluation import EvaluationOptions, command

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("safetensors")


@pytest.fixture
def options(tmp_path):
    return EvaluationOptions(
        model=NAME,
        checkpoint=weights(tmp_path / "weights"),
        data="digits",
        limit=21,
        corruptions="generated",
        corruption_names=("fog", "contrast"),
        severities=(1, 5),
        out=tmp_path / "out",
        device="cpu",
    )


def test_one_command_measures_everything(options, capsys):
    options = replace(options, attack="pgd", steps=2, negatives="shapes", valid_split="train")
    assert command.run(options) == 0
    content = read(options)
    assert list(content["sets"]) == ["clean", "pgd", "fog/1", "fog/5", "contrast/1", "contrast/5"] and content["complete"]
    clean = content["sets"]["clean"]
    assert clean["count"] == 21 and 0.2 <= clean["temperature"] <= 5 and 0 <= clean["auroc_energy"] <= 1 and "negatives_rejected" in clean
    assert clean["negatives"] == 10, "the other half chose the thresholds"
    assert content["corruption"]["error"]["fog"]["5"] == pytest.approx(1 - content["sets"]["fog/5"]["top1"])
    thresholds = json.loads((options.out / "clean" / "thresholds.json").read_text())
    assert len(thresholds) == 10 and all(value is None or 0 <= value <= 1 for value in thresholds.values())
    # two of fifteen have no mean, and sets of ten classes no AlexNet
    assert "mean_error" not in content["corruption"] and content["corruption"]["ce_percent"] == {}
    assert {path.name for path in options.out.rglob("*.png")} == {"confusion.png", "reliability.png", "corruptions.png"}
    printed = capsys.readouterr()
    assert "digits" in printed.out and "contrast" in printed.out and "[6/6] contrast/5" in printed.err


def test_the_same_measures_as_by_hand(options):
    from vtkernels import data, evaluation

    command.run(replace(options, limit=None, batch_size=50))
    model = vt.create_model(NAME, num_classes=10, checkpoint=options.checkpoint)
    for name, dataset in {
        "clean": data.create_dataset("digits", "test"),
        "fog/5": data.Corrupted(data.create_dataset("digits", "test"), "fog", 5),
    }.items():
        found = evaluation.evaluate(model, data.create_loader(dataset, 64, statistics=dataset.statistics))
        assert read(options)["sets"][name] == pytest.approx(found.metrics, abs=1e-5)


def test_an_interruption_keeps_what_is_done(options, monkeypatch, capsys):
    whole = replace(options, out=options.out / "whole")
    command.run(whole)
    counted, measured = [], command._Bench.measured

    def interrupted(self, one, progress):
        counted.append(one.name)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return measured(self, one, progress)

    monkeypatch.setattr(command._Bench, "measured", interrupted)
    assert command.run(options) == 130
    assert "2 of 5 sets are done" in capsys.readouterr().err
    assert not read(options)["complete"] and list(read(options)["sets"]) == ["clean", "fog/1"]
    # a kill in the middle of a line, and a change of what decides no number
    with (options.out / "done.jsonl").open("a") as file:
        file.write('{"set": "fog/5", "metr')
    assert command.run(replace(options, batch_size=5)) == 0
    assert counted == ["clean", "fog/1", "fog/5", "fog/5", "contrast/1", "contrast/5"]
    for name, metrics in read(whole)["sets"].items():
        assert read(options)["sets"][name] == pytest.approx(metrics, abs=1e-5)
    # nothing is left to do, and more can be asked
    assert command.run(options) == 0 and len(counted) == 6
    assert command.run(replace(options, severities=(1, 2, 5))) == 0 and counted[6:] == ["fog/2", "contrast/2"]


def test_another_evaluation_in_the_folder_is_refused(options):
    options = replace(options, corruptions="none")
    command.run(options)
    with pytest.raises(ValueError, match="one with another limit; choose another --out, or --restart"):
        command.run(replace(options, limit=5))
    weights(options.out.parent / "weights", 10)
    with pytest.raises(ValueError, match="another weights"):
        command.run(options)
    assert command.run(replace(options, limit=5, restart=True)) == 0
    assert read(options)["sets"]["clean"]["count"] == 5


def test_a_run_folder_answers_for_what_is_left_out(options, tmp_path):
    run = tmp_path / "run"
    weights(run / "weights")
    data = {"name": "digits", "path": None, "options": {"channels": 3}, "valid_split": "test"}
    data |= {"size": 32, "normalize": "half", "eval_crop": 1.0, "squash": False}
    (run / "recipe.json").write_text(json.dumps({"model": {"name": NAME, "num_classes": 10, "options": {}}, "data": data}))
    short = EvaluationOptions(model=str(run), limit=21, device="cpu")
    assert command.run(short) == 0
    told = json.loads((run / "evaluation" / "evaluation.json").read_text())["options"]
    assert told["model"] == NAME and told["normalize"] == "half" and told["crop"] == 1.0 and told["split"] == "test"
    (run / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a run's recipe"):
        command.run(short)


def test_published_files_of_cifar(options, tmp_path):
    rng = np.random.default_rng(0)
    batches = tmp_path / "cifar" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    labels = np.arange(20) % 10
    content = {b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), b"labels": labels.tolist()}
    (batches / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({b"label_names": [str(number).encode() for number in range(10)]}, protocol=2))
    files = tmp_path / "files"
    files.mkdir()
    np.save(files / "labels.npy", np.tile(labels, 5))
    np.save(files / "fog.npy", rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8))
    asked = replace(options, data="cifar10", path=tmp_path / "cifar", corruptions="files", corruption_path=files, corruption_names=("fog",), limit=None)
    assert command.run(asked) == 0
    assert list(read(asked)["sets"]) == ["clean", "fog/1", "fog/5"] and read(asked)["sets"]["fog/5"]["count"] == 20
    with pytest.raises(FileNotFoundError, match="snow.npy is missing"):
        command.run(replace(asked, corruption_names=("fog", "snow")))
    # what was done before the missing file stays
    assert '"fog/5"' in (asked.out / "done.jsonl").read_text()


def test_large_images_are_cut_before_they_are_corrupted(options):
    from vtkernels import data
    from vtkernels.evaluation import _sets

    asked = replace(options, data="shapes", data_options={"size": 96, "count": 6}, limit=None, size=32, corruption_names=("contrast",), severities=(5,))
    clean = _sets.clean_set(asked)
    (_, one) = _sets.sets_of(asked, clean)
    corrupted = one.build()
    # 32 pixels in the middle of 36
    cut = data.transforms.CenterCrop(32)(data.transforms.Resize((36, 36))(clean.image(3)))
    np.testing.assert_array_equal(corrupted.image(3), data.corrupt(cut, "contrast", 5))
    images, _ = next(iter(_sets.loader_of(asked, corrupted, 32, cut=one.cut)))
    expected = data.transforms.Normalize(*clean.statistics)(corrupted.image(3))
    np.testing.assert_allclose(images[3].numpy(), expected, atol=1e-6)
    # and small ones before they are resized
    small = replace(asked, data_options={"size": 24, "count": 6})
    clean = _sets.clean_set(small)
    np.testing.assert_array_equal(_sets.sets_of(small, clean)[1].build().image(3), data.corrupt(clean.image(3), "contrast", 5))


def test_an_interruption_before_anything_is_done(options, monkeypatch):
    def interrupted(self, one, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(command._Bench, "measured", interrupted)
    assert command.run(options) == 130 and read(options)["sets"] == {}


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (value % 256, value // 4 % 256, 50)).save(path)


def test_the_sets_of_imagenet(options, tmp_path):
    for number in range(1000):
        (tmp_path / "val" / f"n{number:08d}").mkdir(parents=True)
    for number in range(0, 1000, 100):
        draw(tmp_path / "val" / f"n{number:08d}" / f"ILSVRC2012_val_{number // 100 + 1:08d}.JPEG", number)
        draw(tmp_path / "v2" / str(number) / "0.jpeg", number)
    (tmp_path / "real.json").write_text(json.dumps([[], [1, 2], *[[number] for number in range(8)]]))
    for number in range(200):
        for kind in ("r", "a"):
            draw(tmp_path / kind / f"n{number:08d}" / "0.jpg", number)
    asked = replace(
        options,
        checkpoint=weights(tmp_path / "thousand", 1000),
        data="imagenet",
        path=tmp_path,
        split="val",
        limit=4,
        real=tmp_path,
        v2=tmp_path / "v2",
        renditions=tmp_path / "r",
        natural=tmp_path / "a",
        corruption_names=(),
        severities=(1, 2, 3, 4, 5),
    )
    assert command.run(asked) == 0
    content = read(asked)
    assert list(content["sets"])[:5] == ["clean", "imagenet-real", "imagenet-v2", "imagenet-r", "imagenet-a"] and len(content["sets"]) == 5 + 95
    assert content["sets"]["imagenet-r"]["top1_unmasked"] <= content["sets"]["imagenet-r"]["top1"]
    errors = content["corruption"]["error"]
    assert content["corruption"]["mean_error"] == pytest.approx(np.mean([list(errors[name].values()) for name in list(errors)[:15]]), abs=1e-12)
    assert content["corruption"]["mce_percent"] > 100, "random weights are worse than AlexNet"
    with pytest.raises(ValueError, match="model of ImageNet's 1000 classes"):
        command.run(replace(options, real=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "data must be a data set's name"),
        ({"data": "digit"}, "did you mean digits"),
        ({"model": "vit_nanoo"}, "no model is called"),
        ({"model": "runs/nowhere"}, "got runs/nowhere; there is no such folder"),
        ({"corruption_names": ("rain",)}, "got rain"),
        ({"severities": (0,)}, "be some of 1, 2, 3, 4, 5"),
        ({"corruptions": "files"}, "corruption_path must be the folder"),
        ({"corruptions": "files", "corruption_path": "."}, "'generated' for this set"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"crop": 1.5}, "crop must be"),
        ({"data": "shapes"}, "fill vit_nano_patch4_32 of 8 classes"),
        ({"epsilon": -1.0}, "epsilon and steps"),
        ({"epsilon": float("inf")}, "pixels lie in 0..1"),
        ({"device": "nowhere"}, "device: expected one of this machine, got 'nowhere'"),
        ({"model": "."}, "which holds no recipe.json"),
        ({"threshold_precision": 2.0}, "above 0 and at most 1"),
        ({"threshold_precision": 0.9}, "validation set and negatives"),
    ],
)
def test_bad_options_are_told(options, change, message):
    with pytest.raises(ValueError, match=message):
        command.run(replace(options, **change))


def test_a_command_line_is_made_of_the_options(options):
    tyro = pytest.importorskip("tyro")
    line = "--model vit --data digits --severities 1 3 --corruptions generated --path x --attack fgsm --data-options size 8"
    parsed = tyro.cli(EvaluationOptions, args=line.split())
    assert parsed.severities == (1, 3) and parsed.attack == "fgsm" and str(parsed.path) == "x" and parsed.corruptions == "generated"
