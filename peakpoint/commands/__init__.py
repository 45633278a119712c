"""The commands of `peakpoint`, a file a group. torch is imported late."""
