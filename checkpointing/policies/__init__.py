"""The policies by name, each a component; a module here is found by being here."""

from peakpoint.base.registry import import_all

import_all(__name__, __path__)
