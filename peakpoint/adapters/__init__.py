"""The policies and the store for those who keep their framework's loop: Lightning, transformers."""
