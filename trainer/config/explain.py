"""Explain in one line what is wrong, and which key or choice was meant."""

import re
from collections.abc import Iterable

from hydra.errors import MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import registry
from peakpoint.base.errors import os_reason
from peakpoint.base.text import closest, nearest
from peakpoint.trainer.config.choices import CHOICES, choices, leaves
from peakpoint.trainer.config.hydra_overrides import RENAMED

SYNONYMS = {
    "lr": "learning_rate base_lr max_lr learningrate",
    "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size",
    "epochs": "epoch num_epochs max_epochs n_epochs num_train_epochs",
    "weight_decay": "wd decay",
    "momentum": "mom",
    "beta1": "betas beta",
    "seed": "random_seed manual_seed",
    "target": "sparsity target_sparsity final_sparsity amount",
    "device": "gpu gpus accelerator",
    "precision": "amp fp16 bf16 mixed_precision",
    "clip_norm": "clip grad_clip max_grad_norm gradient_clip_val",
    "grad_accumulation": "accumulate_grad_batches gradient_accumulation_steps grad_accum",
    "data": "dataset",
    "root": "data_dir data_path data_root dataset_path",
    "model": "network net arch",
    "optimizer": "optim opt optimiser",
    "scheduler": "lr_scheduler",
    "max_steps": "steps num_steps total_steps",
    "warmup_epochs": "warmup warmup_steps",
    "label_smoothing": "smoothing",
    "resume": "ckpt ckpt_path checkpoint_path resume_from resume_from_checkpoint",
    "hydra.run.dir": "output_dir out_dir save_dir logdir log_dir",
}
"""Our name -> what others call it."""

_OURS = {theirs: ours for ours, names in SYNONYMS.items() for theirs in names.split()}


WANTED = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
"""OmegaConf's types, in words."""


def explain(error: BaseException) -> str:
    """Return what was wrong, and what to do, in one line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        word = f"{group}={option}" if group else f"--config-name {option}"
        own = f" {registry.OWN}" if group in CHOICES.values() else ""
        return f"{word} is not a choice{nearest(option, choices(group))}{own}"
    if isinstance(error, OSError) and not isinstance(error, MissingConfigException):
        return f"{error.filename or 'a file'}: {os_reason(error)}."
    if lacking := re.match(r"Could not delete (?:from config\. )?'(.*?)'", str(error)):
        return f"~{lacking[1]} removes nothing, since this configuration has no {lacking[1]}: leave it out."
    cause: BaseException = error
    while deeper := cause.__cause__ or (
        # Hydra names the file that is wrong and leaves the reason to the context.
        None if isinstance(cause, OmegaConfBaseException) else cause.__context__
    ):
        cause = deeper
    if not isinstance(cause, OmegaConfBaseException) or cause.full_key is None:
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    first = str(cause).splitlines()[0]
    if re.match(r"Key '.*' (is )?not in ", first) and cause.parent_node is not None:
        key = str(cause.key)
        return unknown_key(cause.full_key.removesuffix(key), key, map(str, cause.parent_node))
    if "is not Optional" in first:
        return f"{cause.full_key}=null: it needs a value."
    if "is not a ListConfig" in first:
        return f"{cause.full_key} is a list: write its values in brackets, as {cause.full_key}=[VALUE]."
    if "missing mandatory value" in first:
        return f"{cause.full_key} has no value."
    kinds = r"Value '(.*)' (?:of type '.*' could not be converted to|is not a valid) (\w+)"
    if wrong := re.match(kinds, first):
        value, kind = wrong[1], WANTED.get(wrong[2], wrong[2])
        percent = re.fullmatch(r"([\d.]+) ?%", value)
        end = f": type {cause.full_key}={float(percent[1]) / 100:g}" if percent else "."
        return f"{cause.full_key}={value} is not {kind}{end}"
    if wrong := re.match(r".*: \w+ is not a subclass of (\w+)\. value: (.*)", first):
        named = (key for key, kind in leaves().items() if getattr(kind, "__name__", "") == wrong[1])
        node = next(named, str(cause.full_key) or wrong[1].lower())
        return (
            f"{node}: {wrong[2]} stands where keys are expected, such as {RENAMED.get(node, f'{node}.KEY')}."
        )
    if wrong := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", first):
        return f"{cause.full_key}={wrong[1]} is not a choice{nearest(wrong[1], wrong[2].split(', '))}"
    return f"{cause.full_key}: {first.rstrip('.')}."


def unknown_key(prefix: str, key: str, known: Iterable[str]) -> str:
    """Return the sentence for a key that does not exist; `prefix` is the path to it with its last dot."""
    there = sorted(known)
    found = meant(key, there, prefix)
    among = f"; there are: {', '.join(there)}." if there else f": {prefix.rstrip('.')} has none."
    end = f": did you mean {found}?" if found and found != f"{prefix}{key}" else among
    return f"{prefix}{key} is not a key of this configuration{end}"


def meant(key: str, known: Iterable[str], prefix: str = "") -> str | None:
    """Return the whole key that was meant by `key`, where the names in `known` are those behind `prefix`."""
    if new := RENAMED.get(f"{prefix}{key}"):
        return new
    names = {name.lower(): name for name in known}
    wanted = [key.lower(), _OURS.get(key.lower(), key.lower())]
    for word in reversed(wanted):
        if word in names:
            return f"{prefix}{names[word]}"
        if "." in word:
            return word
    close = closest(wanted[0], names.values())
    if prefix and close:
        return f"{prefix}{close}"
    everywhere = sorted(leaves(), key=lambda leaf: (leaf.count("."), leaf))
    for leaf in everywhere:
        if leaf.rpartition(".")[2] in wanted:
            return RENAMED.get(leaf, leaf)
    if close:
        return close
    last = {leaf.rpartition(".")[2]: leaf for leaf in reversed(everywhere)}
    close = closest(wanted[0], last, 0.75)
    return last[close] if close else None
