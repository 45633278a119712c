"""Where images come from, each source a component. It needs no torch; what is chosen is read late."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peakpoint.base.given import INF, require_range
from peakpoint.base.registry import register
from peakpoint.trainer.data.settings import TRAIN, Data, Facts

if TYPE_CHECKING:
    from peakpoint.trainer.data.images import Images


@dataclass(kw_only=True)
class Torchvision(Data):
    """A data set of torchvision's, downloaded when it is missing; `dataset` is its class there."""

    dataset: ClassVar[str]

    def read(self, split: str) -> "Images":
        """Return all images of a split. Raises UserError."""
        from peakpoint.trainer.data import torchvision  # late: torchvision costs a second

        return torchvision.load(self.folder, self.dataset, self.name, split)


@register("data", "cifar10")
@dataclass(kw_only=True)
class Cifar10(Torchvision):
    """CIFAR-10: 32x32 colour, 10 classes."""

    dataset = "CIFAR10"
    facts = Facts(images=50_000, side=32, channels=3, classes=10)


@register("data", "cifar100")
@dataclass(kw_only=True)
class Cifar100(Torchvision):
    """CIFAR-100: 32x32 colour, 100 classes."""

    dataset = "CIFAR100"
    facts = Facts(images=50_000, side=32, channels=3, classes=100)


@register("data", "mnist")
@dataclass(kw_only=True)
class Mnist(Torchvision):
    """MNIST: 28x28 grey digits."""

    dataset = "MNIST"
    facts = Facts(images=60_000, side=28, channels=1, classes=10)


@register("data", "fashion_mnist")
@dataclass(kw_only=True)
class FashionMnist(Torchvision):
    """Fashion-MNIST: 28x28 grey clothes."""

    dataset = "FashionMNIST"
    facts = Facts(images=60_000, side=28, channels=1, classes=10)


@register("data", "image_folder")
@dataclass(kw_only=True)
class ImageFolder(Data):
    """<root>/{train,test}/<class>/<image file>."""

    @property
    def facts(self) -> Facts:
        """Return what is known before anything is read: images are cut to `image_size` while they are."""
        return Facts(side=self.image_size)

    def read(self, split: str) -> "Images":
        """Return all images of a split. Raises UserError."""
        from peakpoint.trainer.data import image_folder  # late: it brings PIL and rich

        return image_folder.load(self.folder, split, self.image_size)


@register("data", "npz")
@dataclass(kw_only=True)
class Npz(Data):
    """<root>/{train,test}.npz with images, labels and perhaps classes."""

    def read(self, split: str) -> "Images":
        """Return all images of a split. Raises UserError."""
        from peakpoint.trainer.data import images

        return images.load_npz(self.folder / f"{split}.npz")


@register("data", "digits")
@dataclass(kw_only=True)
class Digits(Data):
    """scikit-learn's 1,797 grey 8x8 digits; no download."""

    facts = Facts(images=1438, side=8, channels=1, classes=10)

    def read(self, split: str) -> "Images":
        """Return all images of a split. Raises UserError."""
        from peakpoint.trainer.data import images

        return images.from_digits(train=split == TRAIN)


@register("data", "synthetic")
@dataclass(kw_only=True)
class Synthetic(Data):
    """Made images that can be learned: a pattern for each class, and noise; no download."""

    train_size: int
    test_size: int
    num_classes: int
    channels: int
    native_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "data.", 1, INF, "train_size test_size channels native_size")
        require_range(self, "data.", 2, INF, "num_classes")

    @property
    def facts(self) -> Facts:
        """Return what is known before anything is read."""
        return Facts(
            images=self.train_size, side=self.native_size, channels=self.channels, classes=self.num_classes
        )

    def read(self, split: str) -> "Images":
        """Return all images of a split."""
        from peakpoint.trainer.data import images

        train = split == TRAIN
        return images.from_synthetic(
            train=train,
            count=self.train_size if train else self.test_size,
            num_classes=self.num_classes,
            channels=self.channels,
            side=self.native_size,
        )
