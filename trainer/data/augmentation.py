"""Random crops, mirroring, cutout and normalisation of a whole batch, in a few tensor operations.

None of them waits for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from peakpoint.trainer.data.images import Images
from peakpoint.trainer.data.settings import Data


def channel_statistics(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) float64, in [0, 1] units, of images[index] (N, H, W, C) uint8.

    A constant channel gets a deviation of 1, so that it can be divided by.
    """
    channels = images.shape[-1]
    total, squares = (torch.zeros(images[0].numel(), dtype=torch.float64) for _ in range(2))
    # 256 squares of a uint8 stay below 2**24: float32 adds them without error, in any order.
    for part in index.split(256):
        pixels = images[part].view(len(part), -1).to(torch.float32)
        total += pixels.sum(0)
        squares += pixels.square_().sum(0)
    count = len(index) * total.numel() // channels
    mean = total.view(-1, channels).sum(0) / count
    variance = squares.view(-1, channels).sum(0) / count - mean.square()
    std = variance.clamp(min=0).sqrt()
    return mean / 255, torch.where(std > 0, std / 255, 1.0)


def crop_and_flip(images: Tensor, canvas: Tensor, choices: Tensor) -> Tensor:
    """Return random crops (B, H, W, C) of `images` (B, H, W, C), both uint8.

    `choices` (3, B): the first row and column of each crop on the image padded with black, and 1 where the
    image is mirrored first, which has the distribution of torchvision's RandomCrop and RandomHorizontalFlip.
    `canvas` (1 or 2, at least B, H + 2p, W + 2p, C) is scratch space with a black border; 2 when flipping.
    """
    count, height, width, channels = images.shape
    padding = (canvas.shape[2] - height) // 2
    inside = canvas[:, :count, padding : padding + height, padding : padding + width]
    inside[0] = images
    if len(canvas) == 2:
        inside[1] = images.flip(2)
    # Every crop is a view into the canvas, so that one gather copies the chosen ones, row by row.
    side, image, row, pixel, _ = canvas.stride()
    windows = canvas.as_strided(
        (len(canvas), count, 2 * padding + 1, 2 * padding + 1, height, width * channels),
        (side, image, row, pixel, row, 1),
    )
    top, left, mirrored = choices
    which = torch.arange(count, device=canvas.device)
    return windows[mirrored, which, top, left].view(images.shape)


def cut_squares(images: Tensor, size: int, choices: Tensor) -> None:
    """Zero a square of `size` pixels in each of `images` (B, C, H, W), in place (DeVries & Taylor 2017).

    `choices` (2, B): row and column of the middle, anywhere in the image; what lies outside is cut off.
    """
    outside = []
    for length, centre in zip(images.shape[2:], choices, strict=True):
        offset = torch.arange(length, device=images.device) - (centre[:, None] - size // 2)
        outside.append((offset < 0) | (offset >= size))
    rows, columns = outside
    images.mul_((rows[:, :, None] | columns[:, None, :])[:, None].to(images.dtype))


class Preparation:
    """Turns gathered uint8 images (B, H, W, C) into what the network sees (B, C, H, W)."""

    def __init__(
        self, cfg: Data, source: Images, train: Tensor, device: torch.device, layout: torch.memory_format
    ) -> None:
        height, width, channels = source.images.shape[1:]
        self.padding, self.flip, self.cutout, self.layout = cfg.crop_padding, cfg.flip, cfg.cutout, layout
        self.mean, self.std = channel_statistics(source.images, train)
        # One value for every byte of an image: the product then runs over contiguous memory.
        self.scale, self.shift = (
            each.to(torch.float32).repeat(height * width).to(device)
            for each in (1 / (255 * self.std), -self.mean / self.std)
        )
        self.native = (height, width)
        self.size = (cfg.image_size, cfg.image_size) if cfg.image_size else self.native
        self.image_shape = (channels, *self.size)
        self.canvas = torch.empty(0)

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return everything random of an epoch over `index` (N,), as rows (6, N) int64.

        Order; row and column of the crop; mirrored; row and column of the middle of the cut square.
        """
        height, width = self.native
        count, offsets = len(index), 2 * self.padding + 1
        order = index[torch.randperm(count, generator=generator)]
        limits = (offsets, offsets, 2 if self.flip else 1, height, width)
        return torch.stack([order, *(torch.randint(n, (count,), generator=generator) for n in limits)])

    def augmented(self, pixels: Tensor, choices: Tensor) -> Tensor:
        """Return a training batch; `choices` (5, B) are rows of `draw` without the order."""
        if self.padding or self.flip:
            pixels = crop_and_flip(pixels, self._canvas(pixels), choices[:3])
        images = self._normalised(pixels)
        if self.cutout:
            cut_squares(images, self.cutout, choices[3:])
        return self._finished(images)

    def plain(self, pixels: Tensor) -> Tensor:
        """Return an evaluation batch."""
        return self._finished(self._normalised(pixels))

    def _canvas(self, pixels: Tensor) -> Tensor:
        count, height, width, channels = pixels.shape
        border = 2 * self.padding
        shape = (2 if self.flip else 1, count, height + border, width + border, channels)
        if self.canvas.shape != shape:
            self.canvas = pixels.new_zeros(shape)
        return self.canvas

    def _normalised(self, pixels: Tensor) -> Tensor:
        flat = pixels.view(len(pixels), -1).to(torch.float32)
        return torch.addcmul(self.shift, flat, self.scale, out=flat).view(pixels.shape).permute(0, 3, 1, 2)

    def _finished(self, images: Tensor) -> Tensor:
        if self.size != self.native:
            shrinks = any(new < old for new, old in zip(self.size, self.native, strict=True))
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=shrinks)
        return images.contiguous(memory_format=self.layout)
