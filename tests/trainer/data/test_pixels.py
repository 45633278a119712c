"""Pictures of every kind people have: converted as a viewer shows them, or refused with the file's name."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from peakpoint.base.errors import UserError
from peakpoint.trainer.data import image_folder, pixels
from tests.conftest import rows

RUN = """model=lenet5 batch_size=4 epochs=1 device=cpu threads=1 report=false logger=[console]
    data=image_folder data.root=images data.crop_padding=0 data.flip=false hydra.run.dir=run"""
SIDE = 12


def folder_of(root: Path, save) -> None:
    """Two classes of four files in each split, as `save(path, bright)` writes them."""
    for split in ("train", "test"):
        for name in ("dark", "bright"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                save(folder / str(number), name == "bright")


def loaded(root: Path, **more) -> torch.Tensor:
    return image_folder.load(root, "train", more.get("size")).images


def one(path: Path, shape=(SIDE, SIDE, 1)) -> np.ndarray:
    return pixels.decode(path, shape)


def sixteen(path: Path, value: int, kind: str) -> None:
    Image.fromarray(np.full((SIDE, SIDE), value, np.uint16)).save(path.with_suffix(kind))


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_a_run_on_sixteen_bit_grey_sees_what_eight_bits_would_show(train, tmp_path, kind):
    folder_of(tmp_path / "images", lambda p, bright: sixteen(p, 51_400 if bright else 2_570, kind))
    assert loaded(tmp_path / "images")[:, 0, 0, 0].tolist() == [200] * 4 + [10] * 4  # bright, dark
    train(*RUN.split()).succeeded()
    assert rows(tmp_path / "run", "eval")


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (128, 0), (129, 1), (257, 1), (65_535, 255), (32_896, 128)]
)
def test_sixteen_bits_are_divided_by_257(tmp_path, value, expected):
    sixteen(tmp_path / "x", value, ".png")
    assert one(tmp_path / "x.png").max() == one(tmp_path / "x.png").min() == expected
    assert pixels.header(tmp_path / "x.png") == ((SIDE, SIDE), True)
    big = np.full((SIDE, SIDE), value, ">u2")
    Image.frombytes("I;16B", (SIDE, SIDE), big.tobytes()).save(tmp_path / "b.tiff")
    assert one(tmp_path / "b.tiff").max() == expected


@pytest.mark.parametrize(
    "array", [np.full((SIDE, SIDE), 0.5, np.float32), np.full((SIDE, SIDE), 70_000, np.int32)]
)
def test_a_run_on_pixels_of_no_known_range_is_refused_with_the_file(train, tmp_path, array):
    folder_of(tmp_path / "images", lambda p, _: Image.fromarray(array).save(p.with_suffix(".tiff")))
    err = train(*RUN.split()).refusal()
    assert f"{Path('images/train/bright/0.tiff')} cannot be read as an image: its pixels are" in err
    assert "save it with 8 or 16 bits" in err


def arrow() -> Image.Image:
    """Wider than high, and bright in its upper left corner."""
    values = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    values[: SIDE // 2, : SIDE // 2] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
def test_a_picture_is_turned_as_its_exif_says(tmp_path, orientation, kind):
    path, exif = tmp_path / f"x.{kind}", Image.Exif()
    exif[0x0112] = orientation
    arrow().save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    high = orientation in (5, 6, 7, 8)
    size = (SIDE, 2 * SIDE) if high else (2 * SIDE, SIDE)
    assert pixels.header(path).size == size
    shown = one(path, (size[1], size[0], 3)).astype(int)
    ends = [shown[0, 0, 0], shown[0, -1, 0], shown[-1, 0, 0], shown[-1, -1, 0]]
    # Where the upper left corner comes to lie: the EXIF standard, 4.6.4.
    corner = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    assert [value > 200 for value in ends] == [number == corner for number in range(4)]
    side = one(path, (SIDE, SIDE, 3)).astype(int)  # resized: turned before it is cut
    assert side.shape == (SIDE, SIDE, 3)


def transparent(mode: str) -> Image.Image:
    """Its left half is opaque and dark, its right half transparent over black."""
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, : SIDE // 2] = 255
    grey = np.where(alpha > 0, 40, 0).astype(np.uint8)
    image = Image.fromarray(np.dstack([grey, alpha] if mode == "LA" else [grey, grey, grey, alpha]))
    return image.convert("P") if mode == "P" else image


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    transparent(mode).save(tmp_path / "x.png")
    shown = one(tmp_path / "x.png", (SIDE, SIDE, 3)).astype(int)
    assert (abs(shown[:, : SIDE // 2] - 40) <= 6).all()
    assert (shown[:, SIDE // 2 :] == 255).all()
    assert pixels.header(tmp_path / "x.png").grey == (mode == "LA")
    assert one(tmp_path / "x.png")[0, 0, 0] == pytest.approx(40, abs=6)


def test_other_modes_are_shown_as_they_are(tmp_path):
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red = one(tmp_path / "cmyk.jpg", (SIDE, SIDE, 3))[5, 5].astype(int)
    assert (red[0] > 240, red[1] < 15, red[2] < 15) == (True, True, True)
    palette = Image.new("P", (SIDE, SIDE), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "p.png")
    assert one(tmp_path / "p.png", (SIDE, SIDE, 3))[0, 0].tolist() == [10, 20, 30]
    Image.new("1", (SIDE, SIDE), 1).save(tmp_path / "bit.png")
    assert one(tmp_path / "bit.png").min() == 255
    assert pixels.header(tmp_path / "bit.png").grey


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_a_file_of_several_pictures_is_refused_by_name(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    frames = [Image.new("RGB", (SIDE, SIDE), (n * 90, 9, 9)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=f"{path} .*it holds 3 pictures, and one is needed"):
        pixels.header(path)


def save_png(path: Path, bright: bool) -> None:
    Image.new("RGB", (SIDE, SIDE), (200 if bright else 10,) * 3).save(path.with_suffix(".png"))


def test_images_in_subfolders_of_a_class_are_of_that_class(tmp_path):
    folder_of(tmp_path, save_png)
    deep = tmp_path / "train" / "dark" / "from camera" / "two"
    deep.mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE), (3, 3, 3)).save(deep / "x.png")
    hidden = tmp_path / "train" / "dark" / ".thumbnails"
    hidden.mkdir()
    save_png(hidden / "x", True)
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    Image.new("RGB", (SIDE, SIDE), (250, 9, 9)).save(linked / "y.png")
    (tmp_path / "train" / "bright" / "more").symlink_to(linked, target_is_directory=True)
    found = image_folder.load(tmp_path, "train", None)
    assert found.classes == ("bright", "dark")
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    assert found.images[:, 0, 0, 0].tolist() == [200] * 4 + [250] + [10] * 4 + [3]
    (deep / "loop").symlink_to(tmp_path / "train" / "dark", target_is_directory=True)
    with pytest.raises(UserError, match=f"{deep / 'loop'} leads to a folder that is read already"):
        image_folder.load(tmp_path, "train", None)


def test_files_that_are_not_read_are_a_warning(tmp_path, caplog):
    folder_of(tmp_path, save_png)
    assert image_folder.load(tmp_path, "train", None).labels.tolist() == [0] * 4 + [1] * 4
    assert caplog.text == ""
    (tmp_path / "train" / "dark" / "a.gif").write_bytes(b"GIF")
    (tmp_path / "train" / "dark" / "b.heic").write_bytes(b"x")
    (tmp_path / "train" / "dark" / ".DS_Store").write_bytes(b"x")
    save_png(tmp_path / "train" / "loose", True)
    assert len(image_folder.load(tmp_path, "train", None).labels) == 8
    assert f"{tmp_path / 'train/dark/a.gif'} and 1 more are not read: images end in .bmp" in caplog.text
    assert (
        f"{tmp_path / 'train/loose.png'} is not read: images belong in the folder of a class" in caplog.text
    )


@pytest.mark.parametrize("what", ["gone", "pipe"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, what):
    folder_of(tmp_path, save_png)
    bad = tmp_path / "train" / "dark" / "x.png"
    os.mkfifo(bad) if what == "pipe" else bad.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=f"{bad} (cannot be read|is no file)"):
        image_folder.load(tmp_path, "train", None)


def test_pixels_that_were_kept_by_other_rules_are_made_again(tmp_path, monkeypatch):
    folder_of(tmp_path, save_png)
    monkeypatch.setattr(image_folder, "RULES", pixels.RULES - 1)
    image_folder.load(tmp_path, "train", None)
    (old,) = (tmp_path / ".peakpoint").glob("*.npy")
    old.write_bytes(old.read_bytes()[:-1] + b"\0")
    monkeypatch.undo()
    assert loaded(tmp_path).max() == 200
    (new,) = (tmp_path / ".peakpoint").glob("*.npy")
    assert new != old
