"""Every source, and one clear line for each thing that can be wrong with it."""

import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from peakpoint.base.errors import UserError
from peakpoint.models._torchvision import torchvision
from peakpoint.trainer.config.schema import Data, Synthetic
from peakpoint.trainer.data import image_folder
from peakpoint.trainer.data import sources as table
from peakpoint.trainer.data.readers import Images, load_npz
from peakpoint.trainer.data.sources import Source, load_test, load_train, register_source, sources
from tests.conftest import ROOT

torch.set_num_threads(1)


def config(name: str, root: Path, image_size: int | None = None) -> Data:
    return Data(
        name=name,
        root=str(root),
        val_fraction=0.1,
        image_size=image_size,
        crop_padding=0,
        flip=False,
        cutout=0,
    )


def refused(load, cfg) -> str:
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The table


def test_each_source_has_its_file_of_values():
    folder = ROOT / "conf" / "data"
    built_in = {"cifar100", "cifar10", "mnist", "fashion_mnist", "image_folder", "npz", "digits", "synthetic"}
    assert {path.stem for path in folder.glob("*.yaml")} >= built_in
    assert built_in <= {source.name for source in sources()}


def test_a_plugin_adds_a_source_but_takes_no_name_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_SOURCES", dict(table._SOURCES))
    images = Images(torch.zeros((2, 4, 4, 1), dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    register_source(Source("mine", "two images", lambda cfg, split: images))
    assert load_train(config("mine", tmp_path)) is images
    with pytest.raises(UserError, match="already registered"):
        register_source(Source("mine", "again", lambda cfg, split: images))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros((2, 4, 4, 1)), torch.tensor([0, 1]), "must be uint8"),
        (torch.zeros((2, 4, 4), dtype=torch.uint8), torch.tensor([0, 1]), r"\(2, 4, 4\)"),
        (torch.zeros((0, 4, 4, 1), dtype=torch.uint8), torch.tensor([]).long(), "N above 0"),
        (torch.zeros((2, 4, 4, 1), dtype=torch.uint8), torch.tensor([0]), "Labels must be int64"),
        (
            torch.zeros((2, 4, 4, 1), dtype=torch.uint8),
            torch.tensor([0, 2]),
            "0 to 2, but there are 2",
        ),
        (torch.zeros((2, 4, 4, 1), dtype=torch.uint8), torch.tensor([0, -1]), "from -1"),
    ],
)
def test_a_source_that_gives_the_wrong_thing_is_found_out(images, labels, message):
    with pytest.raises(UserError, match=message):
        Images(images, labels, ("a", "b"))


# npz


def write_npz(root: Path, split: str = "train", **changed: object) -> None:
    arrays: dict[str, object] = {
        "images": np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3),
        "labels": np.arange(6) % 3,
        "classes": np.array(["cat", "dog", "owl"]),
    }
    arrays.update(changed)
    np.savez(root / f"{split}.npz", **{key: value for key, value in arrays.items() if value is not None})


def test_npz_is_read_as_it_is(tmp_path):
    write_npz(tmp_path)
    write_npz(tmp_path, "test", labels=np.zeros(6, np.uint8), classes=None)
    train, test = load_train(config("npz", tmp_path)), load_test(config("npz", tmp_path))
    assert train.images.shape == (6, 4, 5, 3)
    assert train.images.flatten().tolist() == [i % 256 for i in range(360)]
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.classes == test.classes == ("cat", "dog", "owl")
    assert test.labels.tolist() == [0] * 6


def test_npz_without_names_counts_the_classes_of_training(tmp_path):
    write_npz(tmp_path, classes=None, images=np.zeros((6, 4, 5), np.uint8))
    write_npz(tmp_path, "test", classes=None, labels=np.zeros(6, int))
    assert load_train(config("npz", tmp_path)).images.shape == (6, 4, 5, 1)
    assert load_test(config("npz", tmp_path)).classes == ("0", "1", "2")
    write_npz(tmp_path, "more", classes=None, labels=np.zeros(6, int))
    assert load_npz(tmp_path / "more.npz").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "has no array 'images'; it holds labels, classes"),
        ({"labels": None}, "has no array 'labels'; it holds images, classes"),
        ({"images": np.zeros((6, 4, 5, 3), np.float32)}, "not float32"),
        ({"images": np.zeros((6, 60), np.uint8)}, "of shape (6, 60)"),
        ({"images": np.zeros((0, 4, 5, 3), np.uint8)}, "of shape (0, 4, 5, 3)"),
        ({"labels": np.arange(5)}, "6 images, but 5 labels"),
        ({"labels": np.zeros(6)}, "labels must be integers of shape (N,), not float64"),
        ({"labels": np.zeros((6, 1), int)}, "of shape (6, 1)"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, "labels run from 0 to 3, but must be 0 to 2"),
        ({"labels": np.array([0, 1, 2, -1, 0, 0])}, "labels run from -1 to 2"),
        ({"labels": np.array([0, 1, 2, -1, 0, 0]), "classes": None}, "labels run from -1 to 2"),
        ({"classes": np.arange(3)}, "classes must be a list of text, not int64"),
        ({"classes": np.array(["a", "b", None], dtype=object)}, "cannot be read as an .npz file"),
        ({"images": np.array([{}], dtype=object)}, "cannot be read as an .npz file"),
    ],
)
def test_what_is_wrong_with_an_npz_is_one_line_with_its_name(tmp_path, changed, message):
    write_npz(tmp_path, **changed)
    line = refused(load_train, config("npz", tmp_path))
    assert message in line
    assert str(tmp_path / "train.npz") in line


def test_a_missing_npz_is_named(tmp_path):
    assert refused(load_train, config("npz", tmp_path)).startswith(f"{tmp_path}/train.npz is missing")
    write_npz(tmp_path)
    assert refused(load_test, config("npz", tmp_path)).startswith(f"{tmp_path}/test.npz is missing")


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty", "array", "folder"])
def test_a_damaged_npz_is_one_line(tmp_path, damage):
    write_npz(tmp_path)
    path = tmp_path / "train.npz"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[200] ^= 255  # within the pixels: only the checksum of the archive tells
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("<html>404</html>")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "array":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        path.unlink()
        path.mkdir()
    assert f"{path} cannot be read" in refused(load_train, config("npz", tmp_path))


# image_folder


def write_images(root: Path, size: tuple[int, int] = (6, 5), mode: str = "RGB", count: int = 3) -> None:
    """Class a is dark and class b bright, `count` each in both splits; sizes are (width, height)."""
    for split in ("train", "test"):
        for name, value in (("a", 10), ("b", 200)):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                colour = value + number if mode == "L" else (value + number, 0, 50)
                Image.new(mode, size, colour).save(folder / f"{number}.png")


def caches(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".peakpoint").glob("*.npy"))


def test_images_in_folders_are_read_in_order(tmp_path):
    write_images(tmp_path)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    train = load_train(config("image_folder", tmp_path))
    assert train.images.shape == (6, 5, 6, 3)
    assert train.images[:, 0, 0].tolist() == [[v, 0, 50] for v in (10, 11, 12, 200, 201, 202)]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.classes == ("a", "b")


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "bmp", "webp", "tiff", "PNG"])
def test_all_formats_are_read(tmp_path, kind):
    write_images(tmp_path, count=1)
    Image.new("RGB", (6, 5), (100, 100, 100)).save(tmp_path / "train" / "a" / f"z.{kind}")
    images = load_train(config("image_folder", tmp_path)).images
    assert images[1].float().sub(100).abs().max() <= 3


def test_grey_stays_grey_only_when_all_files_are(tmp_path):
    write_images(tmp_path, mode="L")
    assert load_train(config("image_folder", tmp_path)).images.shape == (6, 5, 6, 1)
    Image.new("RGB", (6, 5), (1, 2, 3)).save(tmp_path / "train" / "a" / "z.png")
    assert load_train(config("image_folder", tmp_path)).images.shape == (7, 5, 6, 3)


def test_image_size_resizes_the_shorter_side_and_cuts_the_centre(tmp_path):
    write_images(tmp_path, count=1)
    wide = np.zeros((8, 32, 3), np.uint8)
    wide[:, 12:20] = 255  # the middle square is white
    Image.fromarray(wide).save(tmp_path / "train" / "a" / "z.png")
    images = load_train(config("image_folder", tmp_path, image_size=4)).images
    assert images.shape == (3, 4, 4, 3)
    assert images[1].float().mean() > 220
    assert images[0, 0, 0].tolist() == [10, 0, 50]


def test_the_array_is_kept_and_made_again_when_the_folder_changes(tmp_path):
    write_images(tmp_path)
    cfg = config("image_folder", tmp_path)
    first = load_train(cfg)
    (kept,) = caches(tmp_path)
    before = (tmp_path / ".peakpoint" / kept).stat().st_mtime_ns
    assert torch.equal(load_train(cfg).images, first.images)
    assert (tmp_path / ".peakpoint" / kept).stat().st_mtime_ns == before

    changed = tmp_path / "train" / "b" / "0.png"
    stat = changed.stat()
    Image.new("RGB", (6, 5), (77, 0, 50)).save(changed)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load_train(cfg).images[3, 0, 0].tolist() == [77, 0, 50]
    (again,) = caches(tmp_path)
    assert again != kept

    (tmp_path / "train" / "a" / "0.png").unlink()
    assert len(load_train(cfg).images) == 5
    load_test(cfg)
    load_train(replace(cfg, image_size=4))
    assert [name.rsplit("-", 1)[0] for name in caches(tmp_path)] == ["test-native", "train-4", "train-native"]
    assert not list((tmp_path / ".peakpoint").glob("*.tmp"))


def test_a_damaged_or_half_written_array_is_made_again(tmp_path):
    write_images(tmp_path)
    cfg = config("image_folder", tmp_path)
    first = load_train(cfg)
    (kept,) = (tmp_path / ".peakpoint").glob("*.npy")
    kept.with_suffix(".tmp").write_bytes(b"left by a run that was killed")
    kept.write_bytes(kept.read_bytes()[:-7])
    assert torch.equal(load_train(cfg).images, first.images)
    assert np.load(kept).shape == (6, 5, 6, 3)


def test_a_large_array_is_mapped_and_never_written_through(tmp_path, monkeypatch, recwarn):
    write_images(tmp_path)
    cfg = config("image_folder", tmp_path)
    first = load_train(cfg)
    monkeypatch.setattr(image_folder, "_MAP_BYTES", 0)
    mapped, *_ = image_folder.load(tmp_path, "train", None)
    assert isinstance(mapped, np.memmap)
    load_train(cfg).images.zero_()
    assert torch.equal(load_train(cfg).images, first.images)
    assert not recwarn


def test_a_root_that_cannot_be_written_is_read_all_the_same(tmp_path, caplog):
    write_images(tmp_path)
    (tmp_path / ".peakpoint").write_text("a file where the folder should be")
    assert len(load_train(config("image_folder", tmp_path)).images) == 6
    assert "decoded again each run" in caplog.text


def test_a_full_disk_is_survived(tmp_path):
    """In a process of its own, whose files may not grow past a few bytes."""
    write_images(tmp_path, size=(64, 64))
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from peakpoint.trainer.data import image_folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "print(image_folder.load(Path(sys.argv[1]), 'train', None)[0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.strip() == "(6, 64, 64, 3)", done.stderr
    assert not list((tmp_path / ".peakpoint").glob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_a_corrupt_image_is_named_and_leaves_no_array(tmp_path, content):
    write_images(tmp_path, size=(64, 64))
    bad = tmp_path / "train" / "b" / "1.png"
    if content == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(bad)
        content = bad.read_bytes()[:3000]
    bad.write_bytes(content)
    assert f"{bad} cannot be read as an image" in refused(load_train, config("image_folder", tmp_path))
    assert not caches(tmp_path)
    assert not list((tmp_path / ".peakpoint").glob("*.tmp"))


def test_images_of_several_sizes_need_image_size(tmp_path):
    write_images(tmp_path)
    odd = tmp_path / "train" / "b" / "2.png"
    Image.new("RGB", (9, 5)).save(odd)
    line = refused(load_train, config("image_folder", tmp_path))
    assert f"{odd} is 9x5 pixels, but 0.png is 6x5: set data.image_size" in line
    assert load_train(config("image_folder", tmp_path, image_size=5)).images.shape == (6, 5, 5, 3)


def test_folders_that_are_not_as_they_should_be_are_named(tmp_path):
    cfg = config("image_folder", tmp_path)
    assert f"{tmp_path}/train is not a folder" in refused(load_train, cfg)
    (tmp_path / "train").mkdir()
    assert f"{tmp_path}/train has no class folders" in refused(load_train, cfg)
    (tmp_path / "train" / "a").mkdir()
    assert f"{tmp_path}/train/a holds no images" in refused(load_train, cfg)
    write_images(tmp_path)
    (tmp_path / "test" / "zebra").mkdir()
    assert f"Class 'zebra' is only in {tmp_path}/test" in refused(load_test, cfg)
    (tmp_path / "test" / "zebra").rmdir()
    (tmp_path / "train" / "yak").mkdir()
    assert f"Class 'yak' is only in {tmp_path}/train" in refused(load_test, cfg)


# digits and synthetic


def test_digits_are_split_the_same_way_every_time(tmp_path):
    cfg = config("digits", tmp_path)
    train, test = load_train(cfg), load_test(cfg)
    assert (len(train.images), len(test.images)) == (1438, 359)
    assert train.images.shape[1:] == (8, 8, 1)
    scaled = load_digits().images[..., None] * 255 / 16
    both = np.concatenate([train.images, test.images])
    assert np.histogram(both, 256)[0].tolist() == np.histogram(scaled.round(), 256)[0].tolist()
    assert torch.bincount(test.labels).sub(36).abs().max() <= 1
    assert torch.equal(load_test(cfg).images, test.images)
    assert len(np.unique(both.reshape(1797, -1), axis=0)) == 1797


def test_the_size_that_is_known_before_digits_are_read_is_theirs(tmp_path):
    cfg = config("digits", tmp_path)
    images = load_train(cfg).images
    assert table.find("digits").size(cfg) == (len(images), images.shape[1])


def test_digits_without_scikit_learn_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install 'peakpoint[digits]'" in refused(load_train, config("digits", tmp_path))


def synthetic(train_size: int = 2000) -> Synthetic:
    return Synthetic(
        name="synthetic",
        root="",
        val_fraction=0.1,
        image_size=None,
        crop_padding=0,
        flip=False,
        cutout=0,
        train_size=train_size,
        test_size=500,
        num_classes=10,
        channels=3,
        native_size=32,
    )


def test_synthetic_images_are_the_same_every_time_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, test = load_train(synthetic()), load_train(synthetic()), load_test(synthetic())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, again.images)
    assert first.images.shape == (2000, 32, 32, 3)
    assert not torch.equal(load_train(synthetic(500)).images, test.images)
    assert torch.bincount(test.labels).tolist() == [50] * 10
    assert hashlib.sha256(first.images.numpy().data).hexdigest()[:16] == "5c951d905233ae94"


def test_synthetic_images_can_be_learned_but_not_at_a_glance():
    train, test = load_train(synthetic()), load_test(synthetic())
    x, z = (s.images.flatten(1).double().sub(128).div(64) for s in (train, test))
    means = torch.stack([x[train.labels == label].mean(0) for label in range(10)])
    learned = (torch.cdist(z, means).argmin(1) == test.labels).double().mean()
    one_shot = (torch.cdist(z, x[:10]).argmin(1) == test.labels).double().mean()
    assert learned > 0.9
    assert one_shot < 0.6


# torchvision


NAMES = {"cifar100": "CIFAR100", "cifar10": "CIFAR10", "mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@pytest.fixture
def no_network(monkeypatch):
    """Addresses that nothing answers: the first port of this machine, refused at once."""
    module = torchvision().datasets
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(getattr(module, name), "url", "http://127.0.0.1:1/archive.tar.gz")
    for name in ("MNIST", "FashionMNIST"):
        monkeypatch.setattr(getattr(module, name), "mirrors", ["http://127.0.0.1:1/"])


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network_the_line_says_what_else_there_is(tmp_path, name, no_network, capfd):
    line = refused(load_train, config(name, tmp_path / "empty"))
    assert f"data.root={tmp_path}/empty" in line
    for choice in ("data=digits", "data=synthetic", "data=npz", "data=image_folder"):
        assert choice in line
    assert capfd.readouterr() == ("", "")


def write_cifar(root: Path, monkeypatch) -> None:
    """A CIFAR-100 of eight images, with the checksums of its files told to torchvision."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = np.arange(8 * 3072, dtype=np.int64).astype(np.uint8).reshape(8, 3072)
    contents = {
        "train": {"data": pixels, "fine_labels": list(range(8))},
        "test": {"data": pixels[:4], "fine_labels": [3, 2, 1, 0]},
        "meta": {"fine_label_names": [f"class {i}" for i in range(100)]},
    }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    kind = torchvision().datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})


def test_cifar_is_read_from_the_folder_without_a_network(tmp_path, monkeypatch, no_network, capfd):
    write_cifar(tmp_path, monkeypatch)
    train, test = load_train(config("cifar100", tmp_path)), load_test(config("cifar100", tmp_path))
    assert train.images.shape == (8, 32, 32, 3)
    assert train.images[0, 0, :3, 0].tolist() == [0, 1, 2]  # the red plane comes first in the file
    assert train.images[0, 0, 0].tolist() == [0, 0, 0]
    assert test.labels.tolist() == [3, 2, 1, 0]
    assert train.classes[7] == "class 7"
    assert capfd.readouterr() == ("", "")


def test_a_damaged_cifar_is_not_used(tmp_path, monkeypatch, no_network):
    write_cifar(tmp_path, monkeypatch)
    with (tmp_path / "cifar-100-python" / "train").open("ab") as stream:
        stream.write(b"x")
    assert "whole and undamaged" in refused(load_train, config("cifar100", tmp_path))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder of files, and the address under which this machine serves them."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_half_written_archive_is_fetched_again(tmp_path, monkeypatch, served, capfd):
    folder, address = served
    write_cifar(folder, monkeypatch)
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "cifar-100-python", "cifar-100-python")
    whole = archive.read_bytes()
    kind = torchvision().datasets.CIFAR100
    monkeypatch.setattr(kind, "url", f"{address}/{archive.name}")
    monkeypatch.setattr(kind, "filename", archive.name)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(whole).hexdigest())
    here = tmp_path / "here"
    here.mkdir()
    (here / archive.name).write_bytes(whole[:100])
    assert len(load_train(config("cifar100", here)).images) == 8
    assert capfd.readouterr() == ("", "")

    archive.write_bytes(whole[:100])
    line = refused(load_train, config("cifar100", tmp_path / "elsewhere"))
    assert line.startswith(f"The download of cifar100 to data.root={tmp_path}/elsewhere failed")


def write_mnist(root: Path) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        shape = b"".join(n.to_bytes(4, "big") for n in (2051, 3, 28, 28))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(shape + bytes(range(3)) * 784)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            b"".join(n.to_bytes(4, "big") for n in (2049, 3)) + bytes([7, 0, 9])
        )
    return folder


def test_mnist_is_grey(tmp_path):
    write_mnist(tmp_path)
    train = load_train(config("mnist", tmp_path))
    assert train.images.shape == (3, 28, 28, 1)
    assert train.labels.tolist() == [7, 0, 9]
    assert len(train.classes) == 10


def test_a_damaged_mnist_is_one_line(tmp_path, no_network):
    folder = write_mnist(tmp_path)
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    line = refused(load_train, config("mnist", tmp_path))
    assert f"data.root={tmp_path} holds damaged files" in line
    images.write_bytes(b"")
    assert f"data.root={tmp_path} holds damaged files" in refused(load_train, config("mnist", tmp_path))
