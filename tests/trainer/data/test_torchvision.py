"""The datasets of torchvision: read from a folder, fetched, or refused in one line."""

import hashlib
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from peakpoint.models._torchvision import torchvision
from tests.trainer.data.data_cases import config, load_test, load_train, refused

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
    """A CIFAR-100 of eight images, with the checksums of its files set in torchvision."""
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
    assert (
        f"data.root={tmp_path}/elsewhere does not hold cifar100 whole and undamaged, and its download failed"
        in line
    )


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
