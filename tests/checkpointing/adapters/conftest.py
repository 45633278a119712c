"""The frameworks import torchvision, which some builds of torch need help with."""

from models._torchvision import torchvision

torchvision()
