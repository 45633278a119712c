"""The networks that can be trained, by name. Importing this package imports neither torch nor torchvision."""

from peakpoint.models import catalogue
from peakpoint.models.settings import Model, create, reads_images, registered

__all__ = ["Model", "catalogue", "create", "reads_images", "registered"]
