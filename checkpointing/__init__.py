"""What to keep of a run, kept safely: policies decide, the manager saves, the store keeps."""
