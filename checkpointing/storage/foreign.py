"""Recognises files and folders of other programs by their content, and names a remedy for each.

Nothing is executed or unpacked: only first bytes, names in an archive and names in a pickle are read.
"""

import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError

HEAD = 4096
"""Bytes read of a file."""
PICKLE = 16 << 20
"""Bytes read of a pickle, which has names and shapes, not weights."""

LOAD = "build its network, and peakpoint.load_checkpoint(path, model) loads it"
CONVERT = "where you trust it: torch.save(torch.load(path, weights_only=False){}, new_path)"


@dataclass(frozen=True)
class Kind:
    """A kind of file and the remedy; `loads` means that load_checkpoint can take weights from it."""

    what: str
    remedy: str
    loads: bool = False

    def __str__(self) -> str:
        return f"It is {self.what}: {self.remedy}."


OURS = Kind("a checkpoint of Peakpoint without its manifest", "copy the .json of the same name beside it")
SAFE = Kind("weights in safetensors", LOAD, loads=True)
MAGIC = (
    (
        b"version https://git-lfs.github.com/spec/",
        Kind("a pointer of Git LFS, not the file", "fetch the file with git lfs pull"),
    ),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, as Keras writes", "open it with Keras or h5py")),
    (b"\x93NUMPY", Kind("a NumPy array", "numpy.load opens it")),
    (b"GGUF", Kind("a GGUF file of llama.cpp", "open it with llama.cpp")),
    (b"\x1f\x8b", Kind("a gzip archive", "unpack it")),
    (b"\x28\xb5\x2f\xfd", Kind("a zstd archive", "unpack it")),
    (b"\xfd7zXZ", Kind("an xz archive", "unpack it")),
    (b"7z\xbc\xaf", Kind("a 7z archive", "unpack it")),
    (b"BZh", Kind("a bzip2 archive", "unpack it")),
    (b"\x89PNG", Kind("a picture", "name a checkpoint")),
    (b"\xff\xd8\xff", Kind("a picture", "name a checkpoint")),
    (b"%PDF", Kind("a PDF", "name a checkpoint")),
)
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")
PLAIN = ("torch.", "collections.", "argparse.", "numpy.", "_codecs.", "builtins.", "__builtin__.")
"""Prefixes of the classes and functions in pickles of tensors and plain values."""
PROGRAMS = (
    ({"pytorch-lightning_version"}, "Lightning"),
    ({"state_dict", "arch"}, "timm, or of a script like it"),
    ({"model_state_dict"}, "another training program"),
    ({"state_dict"}, "another training program"),
)
"""Keys of a checkpoint and the program that writes them."""
OLD_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
FOLDERS = (
    ("saved_model.pb", Kind("a SavedModel of TensorFlow", "tf.saved_model.load opens it")),
    ("model_index.json", Kind("a pipeline of diffusers", "DiffusionPipeline.from_pretrained opens it")),
    (
        ".metadata",
        Kind("a checkpoint of torch.distributed.checkpoint", "torch.distributed.checkpoint loads it"),
    ),
    ("_CHECKPOINT_METADATA", Kind("a checkpoint of Orbax", "orbax.checkpoint opens it")),
    ("zero_to_fp32.py", Kind("a checkpoint of DeepSpeed", "convert it with its zero_to_fp32.py")),
    (
        "config.json",
        Kind("a folder of transformers", f"from_pretrained opens it; of its weights file, {LOAD}"),
    ),
    ("hparams.yaml", Kind("a folder of Lightning", "name the .ckpt under its checkpoints/")),
)


def described(path: Path) -> str:
    """Return a sentence on what a path is, with a leading space to end a message; empty when unknown."""
    kind = recognise(path)
    return f" {kind}" if kind else ""


def recognise(path: Path) -> Kind | None:
    """Return the kind of a file or folder; None when it is unknown, missing or unreadable."""
    try:
        if path.is_dir():
            return next((kind for name, kind in FOLDERS if (path / name).is_file()), None)
        with bounded.opened(path) as file:
            return _of_file(file, os.fstat(file.fileno()).st_size)
    except (CheckpointError, OSError, ValueError):
        return None


def _of_file(file: BinaryIO, size: int) -> Kind | None:
    head = file.read(HEAD)
    if not head:
        return Kind("an empty file", "copy it again")
    if not head.strip(b"\0"):
        return Kind("a file of zeros, as an interrupted copy leaves", "copy it again")
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(file)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGES):
        return Kind("a web page, as a server sends in place of a file", "download it again")
    if head[:1] == b"\x80":
        if OLD_TORCH in head[:16]:
            old = CONVERT.format("").replace("False", "True")
            return Kind("a file of torch.save before version 1.6", old)
        return Kind("a pickle, which can execute anything when it is opened", "have it saved with torch.save")
    if head[257:262] == b"ustar":
        return Kind("a tar archive", "unpack it")
    if head[4:8] == b"TFL3":
        return Kind("a model of TensorFlow Lite", "open it with LiteRT")
    if _is_safetensors(head, size):
        return OURS if b'"__metadata__"' in head and b'"config":' in head else SAFE
    if _is_onnx(head):
        return Kind("an ONNX file", "onnxruntime runs it, and `compare` takes it beside its release")
    return _of_text(head)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return size >= 8 + length and head[8:9] == b"{" and length > 1


def _is_onnx(head: bytes) -> bool:
    """Return whether a protobuf begins with the format's version and its producer, domain or graph."""
    return (
        head[0] == 0x08 and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")
    )


def _of_text(head: bytes) -> Kind | None:
    try:
        text = head.decode() if len(head) < HEAD else head[:-4].decode(errors="ignore")
    except UnicodeDecodeError:
        return None
    if not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return None
    kind = "JSON" if text.lstrip()[:1] in ("{", "[") else "text"
    return Kind(f"{kind}, not weights, and begins with {text.strip()[:40]!r}", "name a checkpoint")


def _of_zip(file: BinaryIO) -> Kind:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            leaves = {name.rpartition("/")[2] for name in names}
            if any(name.endswith(("/constants.pkl", ".py.debug_pkl")) for name in names):
                return Kind("a TorchScript archive", "torch.jit.load opens it")
            if {"archive_format", "archive_version"} & leaves or "serialized_exported_program.json" in leaves:
                return Kind("a program of torch.export", "torch.export.load opens it")
            if "data.pkl" in leaves:
                return _of_torch(file, next(e for e in archive.infolist() if e.filename.endswith("data.pkl")))
            for name, kind in FOLDERS[:2]:
                if name in leaves:
                    return Kind(f"a zip of {kind.what}", f"unpack it, and {kind.remedy}")
            if "model.weights.h5" in leaves:
                return Kind("a model of Keras", "keras.saving.load_model opens it")
            if leaves and all(name.endswith(".npy") for name in leaves):
                return Kind("arrays of NumPy (.npz)", "numpy.load opens it; as data: data=npz")
            listed = ", ".join(sorted(names)[:3])
            return Kind(f"a zip archive of other files ({listed})", "unpack it")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, struct.error):
        return Kind("a cut-off archive, whose end is missing", "copy it again")


def _of_torch(file: BinaryIO, entry: zipfile.ZipInfo) -> Kind:
    """Return the kind of a file of torch.save, by the strings and classes in its pickle."""
    # As torch reads it, by its place: a file need not have the checksums that zipfile insists on.
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(name + extra, os.SEEK_CUR)
    words, classes, protocol = _named_in(file.read(min(entry.file_size, PICKLE)))
    if {"checkpoint_type", "model_state_dict"} <= words:
        return OURS
    if protocol > 3:  # its opcodes are not among those that torch reads without executing
        return Kind(f"a file of torch.save with pickle_protocol={protocol}", CONVERT.format(""))
    for needed, program in PROGRAMS:
        if needed <= words:
            return Kind(f"a checkpoint of {program}", LOAD, loads=True)
    if strange := sorted(c for c in classes if not c.startswith(PLAIN) or c.startswith("torch.nn.modules.")):
        what = f"a file of torch.save that holds whole objects ({', '.join(strange[:3])}), not weights"
        return Kind(what, CONVERT.format(".state_dict()"))
    return Kind("weights saved with torch.save", LOAD, loads=True)


def _named_in(pickle: bytes) -> tuple[set[str], set[str], int]:
    """Return the strings of a pickle, the classes and functions that it names, and its protocol."""
    words: set[str] = set()
    classes: set[str] = set()
    latest: list[str] = []
    protocol = 0
    try:
        for opcode, value, _ in pickletools.genops(pickle):
            if opcode.name == "PROTO":
                protocol = int(str(value))
            elif opcode.name == "GLOBAL":
                classes.add(str(value).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                classes.add(".".join(latest[-2:]))
            elif isinstance(value, str):
                words.add(value)
                latest = [*latest[-1:], value]
    except (ValueError, IndexError, AttributeError):  # cut off, or no pickle
        pass
    return words, classes, protocol
