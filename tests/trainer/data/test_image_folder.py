"""Images in folders: read in order, kept as one array, and one line for what cannot be read."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from peakpoint.trainer.data import image_folder
from tests.conftest import process
from tests.trainer.data.data_cases import config, load_test, load_train, refused, write_images

torch.set_num_threads(1)


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
    assert isinstance(image_folder._open(next((tmp_path / ".peakpoint").glob("*.npy"))), np.memmap)
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
        "print(image_folder.load(Path(sys.argv[1]), 'train', None).images.shape)\n"
    )
    done = process("-c", script, tmp_path)
    assert done.stdout.strip() == "torch.Size([6, 64, 64, 3])", done.stderr
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
