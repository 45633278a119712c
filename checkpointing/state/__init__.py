"""State as tensors and plain types: gathered, serialized, restored."""
