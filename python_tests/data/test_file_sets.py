"""Sets of image files, from small trees of the published layouts."""

import json

import numpy as np
import pytest

from vtkernels.data import CorruptImage, create_dataset
from vtkernels.data.datasets._imagenet import RENDITION_IDS

Image = pytest.importorskip("PIL.Image")
scipy_io = pytest.importorskip("scipy.io")


def draw(path, level: int) -> None:
    """A grey image [6, 8] whose level tells which it is, without loss where the format allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (level,) * 3).save(path, format="PNG")


def levels(dataset) -> list[int]:
    return [int(dataset[index][0].max()) for index in range(len(dataset))]


def test_flowers(tmp_path):
    for number in range(1, 7):
        draw(tmp_path / "jpg" / f"image_{number:05d}.jpg", number)
    scipy_io.savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[102, 1, 2, 3, 77, 5]], np.uint8)})
    ids = {"trnid": np.array([[6, 1]], np.uint16), "valid": np.array([[3]], np.uint16), "tstid": np.array([[2, 4, 5]], np.uint16)}
    scipy_io.savemat(tmp_path / "setid.mat", ids)
    train, both, test = (create_dataset("flowers102", split, root=tmp_path) for split in ("train", "trainval", "test"))
    assert levels(train) == [6, 1] and train.targets.tolist() == [4, 101] and len(train.classes) == 102
    assert levels(both) == [6, 1, 3] and levels(test) == [2, 4, 5]
    assert train[0][0].shape == (6, 8, 3)


def test_pets(tmp_path):
    for level, name in enumerate(["Abyssinian_100", "yorkshire_terrier_7", "american_bulldog_2"]):
        draw(tmp_path / "images" / f"{name}.jpg", level)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "trainval.txt").write_text("# image class species breed\nAbyssinian_100 1 1 1\nyorkshire_terrier_7 3 2 2\n")
    (tmp_path / "annotations" / "test.txt").write_text("american_bulldog_2 2 2 1\n")
    dataset = create_dataset("pets", "trainval", root=tmp_path)
    assert levels(dataset) == [0, 1] and dataset.targets.tolist() == [0, 2]
    assert dataset.classes == ("Abyssinian", "1", "yorkshire_terrier")
    assert levels(create_dataset("pets", "test", root=tmp_path)) == [2]
    (tmp_path / "annotations" / "test.txt").write_text("american_bulldog_2\n")
    with pytest.raises(ValueError, match=r"test.txt:1 must read '<image> <class>"):
        create_dataset("pets", "test", root=tmp_path)


def test_cars(tmp_path):
    kind = [("bbox_x1", object), ("class", object), ("fname", object)]
    annotations = np.array([[(1, 2, "00002.jpg"), (1, 1, "00001.jpg")]], dtype=kind)
    (tmp_path / "devkit").mkdir()
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        scipy_io.savemat(tmp_path / file, {"annotations": annotations})
        draw(tmp_path / f"cars_{split}" / "00001.jpg", 1)
        draw(tmp_path / f"cars_{split}" / "00002.jpg", 2)
    names = np.empty((1, 2), object)
    names[0, :] = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    scipy_io.savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": names})
    for split in ("train", "test"):
        dataset = create_dataset("cars", split, root=tmp_path)
        assert levels(dataset) == [2, 1] and dataset.targets.tolist() == [1, 0]
        assert dataset.classes[1] == "Acura RL Sedan 2012"
    bare = np.array([[(1, "00002.jpg"), (1, "00001.jpg")]], dtype=[kind[0], kind[2]])
    scipy_io.savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": bare})
    with pytest.raises(ValueError, match="take the one with labels"):
        create_dataset("cars", "test", root=tmp_path)


def test_inaturalist(tmp_path):
    images = [{"id": 9, "file_name": "train_val2019/Birds/202/b.jpg"}, {"id": 4, "file_name": "train_val2019/Plants/400/a.jpg"}]
    for level, image in enumerate(images):
        draw(tmp_path / image["file_name"], level)
    content = {"images": images, "annotations": [{"image_id": 4, "category_id": 1}, {"image_id": 9, "category_id": 0}]}
    (tmp_path / "val2019.json").write_text(json.dumps(content))
    dataset = create_dataset("inat2019", "val", root=tmp_path)
    assert levels(dataset) == [1, 0] and dataset.targets.tolist() == [1, 0] and dataset.classes == ("0", "1")
    content["annotations"].pop()
    (tmp_path / "val2019.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 images or labels without the other"):
        create_dataset("inat2019", "val", root=tmp_path)


@pytest.fixture
def tree(tmp_path):
    for label in range(4):
        for number in range(5):
            draw(tmp_path / "train" / f"n0{label}" / f"n0{label}_{number}.JPEG", 10 * label + number)
    (tmp_path / "train" / "n00" / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders_and_their_subsets(tree):
    whole = create_dataset("imagenet", "train", root=tree)
    assert len(whole) == 20 and whole.classes == ("n00", "n01", "n02", "n03") and levels(whole)[7] == 12
    assert levels(create_dataset(tree, "train")) == levels(whole) == levels(create_dataset(tree / "train", "all"))

    (tree / "classes.txt").write_text("n03 a name\nn01\n")
    some = create_dataset("imagenet", "train", root=tree, classes=tree / "classes.txt")
    assert some.classes == ("n01", "n03") and np.bincount(some.targets).tolist() == [5, 5] and levels(some)[5] == 30
    (tree / "images.txt").write_text("n02_3.JPEG\nn00/n00_1.JPEG\n")
    named = create_dataset("imagenet", "train", root=tree, images=tree / "images.txt")
    assert levels(named) == [23, 1] and named.targets.tolist() == [2, 0] and len(named.classes) == 4
    quarter, half = (create_dataset("imagenet", "train", root=tree, fraction=part) for part in (1 / 4, 1 / 2))
    assert len(quarter) == 5 and len(half) == 10 and set(levels(quarter)) < set(levels(half))

    # two classes with a file of one name, and a class with a blank in its name
    for level, label in enumerate(("n00", "great auk")):
        draw(tree / "train" / label / "same.png", 50 + level)
    assert levels(create_dataset("imagenet", "train", root=tree, images=["great auk/same.png", "n00/same.png 0"])) == [51, 50]
    assert create_dataset("imagenet", "train", root=tree, classes=["great auk", "n00"]).classes == ("great auk", "n00")
    with pytest.raises(ValueError, match="that several classes have"):
        create_dataset("imagenet", "train", root=tree, images=["same.png"])
    with pytest.raises(FileNotFoundError, match="got no n09"):
        create_dataset("imagenet", "train", root=tree, classes=["n09"])
    with pytest.raises(ValueError, match="1 others, such as 'n07_1.JPEG'"):
        create_dataset("imagenet", "train", root=tree, images=["n07_1.JPEG"])
    # a folder linked into itself has its images once
    (tree / "train" / "n01" / "again").symlink_to(tree / "train" / "n01", target_is_directory=True)
    assert len(create_dataset("imagenet", "train", root=tree, classes=["n01"])) == 5
    with pytest.raises(FileNotFoundError, match=r"val is missing, get it from https://www.image-net.org"):
        create_dataset("imagenet", "val", root=tree)


def test_imagenet_100_has_its_classes_alone(tree):
    with pytest.raises(ValueError, match="hold 100 classes, got 4; of the whole of ImageNet the option classes takes some"):
        create_dataset("imagenet-100", "train", root=tree)


def test_imagenet_21k_holds_every_256th_image_back(tmp_path):
    for number in range(260):
        draw(tmp_path / f"n{number // 130:02d}" / f"{number:03d}.JPEG", number % 256)
    whole, train, val = (create_dataset("imagenet-21k", split, root=tmp_path) for split in ("all", "train", "val"))
    assert val.paths == [whole.paths[0], whole.paths[256]]
    assert val.targets.tolist() == [0, 1]
    assert train.paths == whole.paths[1:256] + whole.paths[257:]
    assert train.classes == val.classes == ("n00", "n01")


def test_tiny_imagenet(tmp_path):
    for level, label in enumerate(("n02", "n01")):
        draw(tmp_path / "train" / label / "images" / f"{label}_0.JPEG", level)
        draw(tmp_path / "val" / "images" / f"val_{level}.JPEG", 10 + level)
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_1.JPEG\tn02\t0\t32\t44\t62\nval_0.JPEG\tn01\t1\t2\t3\t4\n")
    train, val = (create_dataset("tiny-imagenet", split, root=tmp_path) for split in ("train", "val"))
    assert train.classes == val.classes == ("n01", "n02")
    assert levels(train) == [1, 0] and levels(val) == [11, 10] and val.targets.tolist() == [1, 0]
    assert train.statistics == val.statistics and train.statistics.mean == (0.4802, 0.4481, 0.3975)
    annotations.write_text("val_1.JPEG\tn09\n")
    with pytest.raises(ValueError, match="val_annotations.txt:1 must read '<image> <class> <box>' with a class of train/"):
        create_dataset("tiny-imagenet", "val", root=tmp_path)


def test_imagenet_c(tmp_path):
    draw(tmp_path / "fog" / "2" / "n01" / "ILSVRC2012_val_00000001.JPEG", 2)
    draw(tmp_path / "blur" / "zoom_blur" / "5" / "n01" / "ILSVRC2012_val_00000001.JPEG", 5)
    assert levels(create_dataset("imagenet-c", "test", root=tmp_path, corruption="fog", severity=2)) == [2]
    assert levels(create_dataset("imagenet-c", "test", root=tmp_path, corruption="zoom_blur", severity=5)) == [5]
    with pytest.raises(FileNotFoundError, match="fog/3 is missing"):
        create_dataset("imagenet-c", "test", root=tmp_path, corruption="fog", severity=3)


def test_imagenet_r(tmp_path):
    assert len(RENDITION_IDS) == 200 and sum(RENDITION_IDS) == 86135 and list(RENDITION_IDS) == sorted(set(RENDITION_IDS))
    for number in range(200):
        draw(tmp_path / f"n{number:08d}" / "art_0.jpg", number)
    own, wide = (create_dataset("imagenet-r", "test", root=tmp_path, labels=labels) for labels in ("own", "imagenet"))
    assert own.targets[-1] == 199 and wide.targets[-1] == 988 and own.imagenet_ids[3] == 6
    (tmp_path / "n00000000" / "art_0.jpg").unlink()
    (tmp_path / "n00000000").rmdir()
    with pytest.raises(ValueError, match="folders of 200 classes, got 199"):
        create_dataset("imagenet-r", "test", root=tmp_path)


def test_imagenet_a_has_classes_of_its_own(tmp_path):
    for number in range(200):
        draw(tmp_path / f"n{number:08d}" / "0.jpg", number)
    dataset = create_dataset("imagenet-a", "test", root=tmp_path)
    assert dataset.targets[-1] == 199 and dataset.imagenet_ids[0] == 6 and dataset.imagenet_ids[1] == 11 and len(dataset.imagenet_ids) == 200


def test_imagenet_v2_counts_as_numbers_do(tmp_path):
    for number in (0, 1, 2, 10, 100):
        draw(tmp_path / str(number) / "image.jpeg", number)
    dataset = create_dataset("imagenet-v2", "test", root=tmp_path)
    assert levels(dataset) == dataset.targets.tolist() and sorted(levels(dataset)) == [0, 1, 2, 10, 100]


def test_imagenet_real_goes_by_file_numbers(tmp_path):
    # in another order by folder than by number, and one image without a label
    for number, folder in ((1, "n09"), (2, "n01"), (3, "n05"), (4, "n01")):
        draw(tmp_path / "val" / folder / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    (tmp_path / "real.json").write_text(json.dumps([[], [970, 795], [230, 231], [809]]))
    dataset = create_dataset("imagenet-real", "val", root=tmp_path)
    assert levels(dataset) == [2, 3, 4] and dataset.targets.tolist() == [970, 230, 809]
    image, target = dataset[0]
    assert target.dtype == bool and np.flatnonzero(target).tolist() == [795, 970]
    for text, words in (("[[], [3], [4", "real.json: expected a complete JSON file"), ("[[], [1000], [3], [4]]", r"lie in 0\.\.999, got 3\.\.1000")):
        (tmp_path / "real.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            create_dataset("imagenet-real", "val", root=tmp_path)
    draw(tmp_path / "val" / "n01" / "holiday.JPEG", 1)
    with pytest.raises(ValueError, match="holiday.JPEG must be ILSVRC2012_val"):
        create_dataset("imagenet-real", "val", root=tmp_path)


def test_domainnet(tmp_path):
    draw(tmp_path / "sketch" / "aircraft_carrier" / "sketch_001_000001.jpg", 1)
    draw(tmp_path / "sketch" / "The Eiffel Tower" / "sketch_003_000004.jpg", 3)
    (tmp_path / "sketch_test.txt").write_text("sketch/The Eiffel Tower/sketch_003_000004.jpg 2\nsketch/aircraft_carrier/sketch_001_000001.jpg 0\n")
    dataset = create_dataset("domainnet", "test", root=tmp_path, domain="sketch")
    assert levels(dataset) == [3, 1] and dataset.targets.tolist() == [2, 0] and dataset.classes == ("aircraft_carrier", "1", "The Eiffel Tower")
    (tmp_path / "sketch_train.txt").write_text("sketch/aircraft_carrier/sketch_001_000001.jpg \u00b2\n")
    with pytest.raises(ValueError, match="sketch_train.txt:1 must read"):
        create_dataset("domainnet", "train", root=tmp_path, domain="sketch")
    with pytest.raises(ValueError, match="clipart, infograph"):
        create_dataset("domainnet", "test", root=tmp_path, domain="cartoon")


def test_unreadable_images_are_named(tree):
    dataset = create_dataset("imagenet", "train", root=tree)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    damaged = tree / "train" / "n00" / "n00_2.JPEG"
    Image.fromarray(noise).save(damaged, format="JPEG")
    for content in (damaged.read_bytes()[:400], b"", b"<html>not found</html>"):
        damaged.write_bytes(content)
        with pytest.raises(CorruptImage, match=r"n00_2.JPEG: expected a readable image") as caught:
            dataset[2]
        assert caught.value.path == str(damaged)
    damaged.unlink()
    with pytest.raises(FileNotFoundError):
        dataset[2]
    Image.fromarray(noise[..., 0]).convert("P").save(damaged, format="PNG")
    assert dataset[2][0].shape == (40, 40, 3)
