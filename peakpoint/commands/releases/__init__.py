"""From a checkpoint to a release, and which release is the champion."""
