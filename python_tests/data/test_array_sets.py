"""CIFAR, its corrupted sets and SVHN, from small files in the published formats; and pickles that mean harm."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest

from vtkernels.data import create_dataset
from vtkernels.data.datasets._pickle import _ALLOWED, load_plain_pickle

# the protocol Python 2 wrote the archives in
PROTOCOL = 2


def cifar_batches(count: int = 6) -> dict[str, dict]:
    rng = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    return {
        name: {b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), b"labels": rng.integers(0, 10, count).tolist(), b"batch_label": b"part"}
        for name in names
    }


def write_archive(path, folder: str, parts: dict) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in parts.items():
            data = pickle.dumps(content, PROTOCOL)
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


NAMES = b"airplane automobile bird cat deer dog frog horse ship truck".split()
META = {b"label_names": NAMES, b"num_vis": 3072}


def test_cifar10_from_archive_and_folder(tmp_path):
    batches = cifar_batches()
    write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", {**batches, "batches.meta": META})
    train, test = create_dataset("cifar10", "train", root=tmp_path), create_dataset("cifar10", "test", root=tmp_path)
    assert len(train) == 30 and len(test) == 6 and train.classes[3] == "cat"
    image, target = train[7]
    # the second image of the second batch; planes red, green, blue, each row by row
    planes = batches["data_batch_2"][b"data"][1].reshape(3, 32, 32)
    np.testing.assert_array_equal(image, np.moveaxis(planes, 0, -1))
    assert target == batches["data_batch_2"][b"labels"][1]

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in {**batches, "batches.meta": META}.items():
        # text keys, as Python 3 writes them
        (folder / name).write_bytes(pickle.dumps({key.decode(): value for key, value in content.items()}, 4))
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    again = create_dataset("cifar10", "train", root=tmp_path)
    np.testing.assert_array_equal(again.images, train.images)
    np.testing.assert_array_equal(again.targets, train.targets)


def test_cifar100_has_two_kinds_of_labels(tmp_path):
    part = {b"data": np.zeros((4, 3072), np.uint8), b"fine_labels": [0, 1, 2, 1], b"coarse_labels": [1, 0, 0, 0]}
    meta = {b"fine_label_names": [b"apple", b"bear", b"can"], b"coarse_label_names": [b"fruit", b"other"]}
    write_archive(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", {"train": part, "test": part, "meta": meta})
    fine, coarse = create_dataset("cifar100", root=tmp_path), create_dataset("cifar100", root=tmp_path, coarse=True)
    assert fine.classes == ("apple", "bear", "can") and fine.targets.tolist() == [0, 1, 2, 1]
    assert coarse.classes == ("fruit", "other") and coarse.targets.tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="only cifar100"):
        create_dataset("cifar10", root=tmp_path, coarse=True)


def test_missing_and_damaged_archives_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hold cifar-10-batches-py/ or cifar-10-python.tar.gz, got nothing; .*get it from https://www.cs.toronto.edu"):
        create_dataset("cifar10", root=tmp_path)
    archive = tmp_path / "cifar-10-python.tar.gz"
    write_archive(archive, "cifar-10-batches-py", {"batches.meta": META})
    with pytest.raises(FileNotFoundError, match="no such member"):
        create_dataset("cifar10", root=tmp_path)
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(ValueError, match="expected a complete archive"):
        create_dataset("cifar10", root=tmp_path)
    batches = cifar_batches()
    batches["test_batch"][b"labels"].pop()
    write_archive(archive, "cifar-10-batches-py", {**batches, "batches.meta": META})
    with pytest.raises(ValueError, match=r"as many as the images \(6\)"):
        create_dataset("cifar10", "test", root=tmp_path)
    batches["data_batch_3"][b"labels"][0] = 10
    write_archive(archive, "cifar-10-batches-py", {**batches, "batches.meta": META})
    with pytest.raises(ValueError, match=r"lie in 0\.\.9"):
        create_dataset("cifar10", root=tmp_path)
    # one pixel changed behind the checksum's back
    write_archive(archive, "cifar-10-batches-py", {**cifar_batches(), "batches.meta": META})
    stored = bytearray(gzip.compress(gzip.decompress(archive.read_bytes()), compresslevel=0))
    stored[5000] ^= 1
    archive.write_bytes(stored)
    with pytest.raises(ValueError, match="expected a complete archive, got CRC check failed"):
        create_dataset("cifar10", root=tmp_path)


class Harm:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "harm",
    [
        Harm(eval, "1 + 1"),
        Harm(io.open, "somewhere", "w"),
        Harm(getattr, "text", "upper"),
        Harm(np.ndarray, (1 << 40,)),
        Harm(np.zeros, (1 << 40,)),
        np.array([{"a": 1}], dtype=object),
        np.dtype([("f", "O")]),
        np.dtype("f4"),
        np.zeros(2, [("f", "f4")]),
        Harm(np.frombuffer, b"12345678"),
    ],
    ids=["eval", "open", "getattr", "ndarray", "zeros", "objects", "record", "bare", "records", "frombuffer"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_harmful_pickles_are_refused(harm, protocol, tmp_path):
    with pytest.raises(pickle.UnpicklingError, match=r"^a file: "):
        load_plain_pickle(pickle.dumps({b"data": harm}, protocol), "a file")


@pytest.mark.parametrize("name", ["numpy\nndarray", "numpy\ndtype", "_codecs\nencode", "numpy.core.multiarray\n_reconstruct"])
@pytest.mark.parametrize("state", [b"", b"N}X\x03\x00\x00\x00oddK\x01s\x86b", b")\x81"], ids=["bare", "attribute", "instance"])
def test_what_a_pickle_may_refer_to_is_no_data_and_stays_as_it_is(name, state):
    with pytest.raises(pickle.UnpicklingError):
        load_plain_pickle(b"\x80\x02c" + name.encode() + b"\n" + state + b".", "a file")
    assert not any(hasattr(allowed, "odd") for allowed in _ALLOWED.values())


def test_a_list_held_many_times_is_copied_once():
    nested = [1]
    for _ in range(100):
        nested = [nested, nested]
    read = load_plain_pickle(pickle.dumps(nested), "a file")
    assert read[0] is read[1]


def test_harm_inside_an_archive_is_refused(tmp_path):
    witness = tmp_path / "witness"
    write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", {"batches.meta": Harm(open, str(witness), "w")})
    with pytest.raises(pickle.UnpicklingError, match="io.open; refused"):
        create_dataset("cifar10", root=tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_are_read(protocol):
    ramp = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {b"a": [1, 2.5, None, True], "b": [ramp, np.asfortranarray(ramp), ramp.astype(">i8"), ramp > 2, ramp[:0]], b"c": (b"\xff\x00", "text")}
    read = load_plain_pickle(pickle.dumps(content, protocol), "a file")
    for one, other in zip(read["b"], content["b"], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype and one.flags.writeable
    assert read[b"a"] == content[b"a"] and read[b"c"] == content[b"c"]


def test_a_pickle_leaves_numpys_types_alone():
    """The byte order in a pickle belongs to its array, not to the type object that the whole process shares."""
    data = pickle.dumps(np.arange(3, dtype=">f4"), 2)
    assert load_plain_pickle(data, "a file").tolist() == [0, 1, 2]
    assert np.dtype("f4").str == "<f4"
    # the same bytes under a shape that asks for more
    with pytest.raises(pickle.UnpicklingError, match="cannot reshape"):
        load_plain_pickle(data.replace(b"K\x03\x85", b"K\x09\x85"), "a file")


def test_pickles_of_python_2_are_read():
    """As the published archives are: plain strings, which are bytes, in the data and in NumPy's own description of an array."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x03\x86" + dtype + b"\x89U\x06abcdeftb"
    for encoding, key in (("bytes", b"data"), ("latin1", "data")):
        read = load_plain_pickle(b"\x80\x02}q\x00U\x04data" + array + b"s.", "a file", encoding)
        np.testing.assert_array_equal(read[key], np.frombuffer(b"abcdef", np.uint8).reshape(2, 3))
    assert load_plain_pickle(b"\x80\x02}q\x00U\x04dataq\x01U\x02abq\x02s.", "a file") == {b"data": b"ab"}


def test_cifar_c_severities_are_blocks_of_rows(tmp_path):
    images = np.arange(5 * 4, dtype=np.uint8)[:, None, None, None] * np.ones((32, 32, 3), np.uint8)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.tile([3, 1, 4, 1], 5))
    third = create_dataset("cifar10-c", "test", root=tmp_path, corruption="fog", severity=3)
    assert len(third) == 4 and third[0][0].max() == 8 and third[3][0].min() == 11
    assert third.targets.tolist() == [3, 1, 4, 1] and third.classes[3] == "cat"
    assert len(create_dataset("cifar100-c", "test", root=tmp_path, corruption="fog")) == 20
    with pytest.raises(ValueError, match="1, 2, 3, 4, 5 or None"):
        create_dataset("cifar10-c", "test", root=tmp_path, corruption="fog", severity=6)
    with pytest.raises(FileNotFoundError, match=r"snow.npy is missing"):
        create_dataset("cifar10-c", "test", root=tmp_path, corruption="snow")
    np.save(tmp_path / "frost.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects in dtype"):
        create_dataset("cifar10-c", "test", root=tmp_path, corruption="frost")
    (tmp_path / "frost.npy").write_bytes((tmp_path / "fog.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"frost.npy: expected a complete NumPy file"):
        create_dataset("cifar10-c", "test", root=tmp_path, corruption="frost")
    with (tmp_path / "frost.npy").open("wb") as file:
        np.savez(file, images)
    with pytest.raises(ValueError, match=r"one array, got an archive"):
        create_dataset("cifar10-c", "test", root=tmp_path, corruption="frost")
    np.save(tmp_path / "labels.npy", np.full(20, 10))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, got 10\.\.10"):
        create_dataset("cifar10-c", "test", root=tmp_path, corruption="fog")


def test_svhn_counts_from_zero(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    scipy_io.savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[10], [1], [9], [10], [2]], np.uint8)})
    dataset = create_dataset("svhn", "test", root=tmp_path)
    assert dataset.targets.tolist() == [0, 1, 9, 0, 2]
    np.testing.assert_array_equal(dataset[2][0], pixels[:, :, :, 2])
    for content, words in (
        ({"X": pixels, "y": np.array([10, 1, 9, 11, 2])[:, None]}, r"lie in 1\.\.10, got 1\.\.11"),
        ({"X": pixels / 255, "y": np.ones((5, 1))}, "hold uint8 X"),
    ):
        scipy_io.savemat(tmp_path / "test_32x32.mat", content)
        with pytest.raises(ValueError, match=words):
            create_dataset("svhn", "test", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="extra_32x32.mat is missing"):
        create_dataset("svhn", "extra", root=tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"no such format")
    with pytest.raises(ValueError, match="expected a MATLAB file"):
        create_dataset("svhn", "train", root=tmp_path)
