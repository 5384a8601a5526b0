"""COCO, VOC and ADE20K from small files in their published layouts, and resizing within bounds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtkernels.data import create_dataset, create_loader
from vtkernels.data.datasets import CorruptImage
from vtkernels.data.joint import ResizeWithin


def image(path: Path, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(path)


def labels(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def coco(tmp_path) -> Path:
    for split in ("train", "val"):
        for number in (4, 7, 9):
            image(tmp_path / f"{split}2017" / f"{number}.jpg")
        boxes = [(4, 18, [2, 3, 10, 5], 0), (4, 3, [-5, 10, 100, 100], 0), (4, 3, [5, 5, 0, 4], 0), (7, 18, [0, 0, 30, 20], 1)]
        content = {
            "images": [{"id": number, "file_name": f"{number}.jpg", "width": 30, "height": 20} for number in (9, 4, 7)],
            "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
            "annotations": [
                {"id": place, "image_id": own, "category_id": kind, "bbox": box, "iscrowd": crowd} for place, (own, kind, box, crowd) in enumerate(boxes)
            ],
        }
        path = tmp_path / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path


def test_coco(coco):
    valid = create_dataset("coco", "val", root=coco)
    assert valid.classes == ("car", "dog") and len(valid) == 3 and [Path(path).name for path in valid.paths] == ["4.jpg", "7.jpg", "9.jpg"]
    pixels, target = valid[0]
    assert pixels.shape == (20, 30, 3)
    assert target["boxes"].tolist() == [[2, 3, 12, 8], [0, 10, 30, 20]] and target["labels"].tolist() == [1, 0] and not target["crowd"].any()
    assert valid[1][1]["crowd"].tolist() == [True] and valid[2][1]["boxes"].shape == (0, 4)
    # one image has a crowd only, one nothing
    assert len(create_dataset("coco", "train", root=coco)) == 1
    assert len(create_dataset("coco", "val", root=coco, crowds=False)[1][1]["labels"]) == 0
    images, targets = next(iter(create_loader(valid, 3)))
    assert images.shape == (3, 3, 20, 30) and [len(own["labels"]) for own in targets] == [2, 1, 0]


def test_files_that_are_missing_are_told_at_once(coco):
    (coco / "val2017" / "9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="got none for 1 of 3; the first is .*9.jpg"):
        create_dataset("coco", "val", root=coco)


def test_coco_errors(coco):
    path = coco / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 0 of others"):
        create_dataset("coco", "val", root=coco)
    path.write_text(json.dumps(content | {"annotations": content["annotations"][1:] + [{"image_id": 4, "category_id": 3}]}))
    with pytest.raises(ValueError, match="instances_val2017.json must have .* annotations with a bbox, .*got KeyError 'bbox'"):
        create_dataset("coco", "val", root=coco)
    del content["annotations"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="got KeyError 'annotations'"):
        create_dataset("coco", "val", root=coco)
    with pytest.raises(FileNotFoundError, match="instances_test2017.json"):
        create_dataset("coco", "test", root=coco)


XML = """<annotation><object><name>{name}</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def test_voc(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    image(base / "JPEGImages" / "a.jpg")
    for folder in ("Main", "Segmentation"):
        (base / "ImageSets" / folder).mkdir(parents=True)
        (base / "ImageSets" / folder / "train.txt").write_text("a\n")
    (base / "Annotations").mkdir()
    (base / "Annotations" / "a.xml").write_text(XML.format(name="tvmonitor"))
    labels(base / "SegmentationClass" / "a.png", np.array([[0, 20, 255]]))
    detection = create_dataset("voc", "train", root=tmp_path)
    target = detection[0][1]
    assert len(detection.classes) == 20 and target["boxes"].tolist() == [[0, 2, 30, 20]] and target["labels"].tolist() == [19]
    assert target["difficult"].tolist() == [True]
    segmentation = create_dataset("voc", "train", root=base, task="segmentation")
    assert len(segmentation.classes) == 21 and segmentation[0][1].tolist() == [[0, 20, 255]]
    (base / "Annotations" / "a.xml").write_text(XML.format(name="unicorn"))
    with pytest.raises(ValueError, match="a.xml: expected an annotation of VOC.*unicorn"):
        detection[0]


def test_ade20k(tmp_path):
    image(tmp_path / "images" / "validation" / "x.jpg", (1, 3))
    labels(tmp_path / "annotations" / "validation" / "x.png", np.array([[0, 1, 150]]))
    dataset = create_dataset("ade20k", "val", root=tmp_path)
    assert len(dataset.classes) == 150 and dataset[0][1].tolist() == [[255, 0, 149]]
    Image.fromarray(np.zeros((1, 3, 3), dtype=np.uint8)).save(tmp_path / "annotations" / "validation" / "x.png")
    with pytest.raises(CorruptImage, match="instead of a map of classes"):
        dataset[0]


def test_shapes_of_segmentation_count_the_ground():
    dataset = create_dataset("shapes", count=20, task="segmentation")
    assert len(dataset.classes) == 9 and dataset.classes[0] == "ground"
    for index in range(20):
        assert dataset.targets[index] in dataset[index][1]


def test_resizing_within_bounds():
    pixels = np.zeros((40, 100, 3), dtype=np.uint8)
    target = {"boxes": np.array([[0.0, 0.0, 100.0, 40.0]], dtype=np.float32), "labels": np.array([0])}
    resized, found = ResizeWithin(20)(pixels, target)
    assert resized.shape == (20, 50, 3) and found["boxes"].tolist() == [[0, 0, 50, 20]]
    assert ResizeWithin(80, 60)(pixels, target)[0].shape == (24, 60, 3)
    sides = {ResizeWithin((10, 13))(pixels, target, seed)[0].shape[0] for seed in range(40)}
    assert sides == {10, 11, 12, 13}
    with pytest.raises(ValueError, match="shortest"):
        ResizeWithin((5, 4))
