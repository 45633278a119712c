"""The frameworks import torchvision, which some builds of torch need help with."""

from peakpoint.models._torchvision import torchvision

torchvision()
