"""What the tests of data share: settings of a source, its refusals, and small folders of images."""

from pathlib import Path

from PIL import Image

from peakpoint.base import registry
from peakpoint.base.errors import UserError
from peakpoint.trainer.data.images import Images
from peakpoint.trainer.data.settings import Data
from tests.conftest import one_line


def config(name: str, root: Path | str = "", **changed) -> Data:
    values = {"val_fraction": 0.1, "image_size": None, "crop_padding": 0, "flip": False, "cutout": 0}
    made: Data = registry.find("data", name)(name=name, root=str(root), **(values | changed))
    return made


def load_train(cfg: Data) -> Images:
    return cfg.read("train")


def load_test(cfg: Data) -> Images:
    return cfg.read("test")


def refused(load, *arguments) -> str:
    """The message of the UserError, which must be one line."""
    with one_line(UserError) as caught:
        load(*arguments)
    return str(caught.value)


def write_images(root: Path, size: tuple[int, int] = (6, 5), mode: str = "RGB", count: int = 3) -> None:
    """Class a is dark and class b bright, `count` each in both splits; sizes are (width, height)."""
    for split in ("train", "test"):
        for name, value in (("a", 10), ("b", 200)):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                colour = value + number if mode == "L" else (value + number, 0, 50)
                Image.new(mode, size, colour).save(folder / f"{number}.png")
