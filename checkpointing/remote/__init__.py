"""The mirror of a run in any place that fsspec reaches: upload, download and layout."""
