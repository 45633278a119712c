"""One image file to 8-bit grey or colour, as a viewer shows it; what cannot be shown rightly is refused."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from peakpoint.base.errors import UserError

RULES = 2
"""The number of the rules below: pixels that were kept under others are made again."""

_GREY = ("1", "L", "LA", "La")
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class Header(NamedTuple):
    """Facts from the head of an image file."""

    size: tuple[int, int]
    grey: bool


def header(path: Path) -> Header:
    """Return the size as shown, and whether the image is grey. Raises UserError that names the file."""
    with _opened(path) as image:
        width, height = image.size
        # PIL has turned a TIFF's size already.
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return Header((height, width) if turned else (width, height), image.mode in _GREY or _deep(image))


def decode(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Return pixels of `shape` (H, W, C) uint8, resized to the shorter side and cut to the centre.

    Turned as EXIF says; 16-bit grey divided by 257; what is transparent is white. Raises UserError.
    """
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    with _opened(path) as image:
        # Only JPEG heeds this: decode at a fraction of the size, still twice what is needed.
        image.draft(mode, (2 * max(width, height),) * 2)
        pixels = _opaque(_eight_bits(ImageOps.exif_transpose(image))).convert(mode)
        if pixels.size != (width, height):
            pixels = ImageOps.fit(pixels, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(pixels).reshape(shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            # The second picture of a camera's MPO is a preview of the first.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if frames > 1:
                raise ValueError(f"it holds {frames} pictures, and one is needed")
            if image.mode in ("F", "I") and not _deep(image):
                raise ValueError(
                    f"its pixels are {'floats' if image.mode == 'F' else '32-bit integers'} of no known "
                    "range: save it with 8 or 16 bits"
                )
            yield image
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        raise UserError(f"{path} cannot be read as an image: {' '.join(str(error).split())}.") from error


def _deep(image: Image.Image) -> bool:
    """Return whether an image is grey with 16 bits; some versions of PIL open such a PNG with 32."""
    return image.mode in _SIXTEEN or (image.mode == "I" and image.format == "PNG")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode not in (*_SIXTEEN, "I"):
        return image
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image on white, where parts of it are transparent."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
