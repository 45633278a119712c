"""A model card as a Markdown page with the front matter of the Hugging Face Hub.

See https://huggingface.co/docs/hub/model-cards. Results are also a model-index, which the Hub reads.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from peakpoint.checkpointing.metrics import METRICS, shown
from peakpoint.deployment.release.card import lines_of

SPLITS = {"val": "validation"}

# Values of `license` on the Hub; any other is `other`, with a name.
_HUB = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0
cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0
ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LICENSES = frozenset(_HUB.split())


def markdown(card: Mapping[str, Any]) -> str:
    """Return the card as a page with front matter; empty sections are left out."""
    title = f"# {card.get('name') or 'Model'} v{card.get('version')}"
    sections = {
        "": _text(card.get("description")),
        "Model": _table(_model(card)),
        "Intended use": _text(card.get("intended_use")),
        "Out of scope": _text(card.get("out_of_scope")),
        "Limitations": _text(card.get("limitations")),
        "Ethical considerations": _text(card.get("ethical_considerations")),
        "How to use it": _usage(card),
        "Results": _results(card),
        "Data": _table(_data(card)),
        "Training": _training(card),
        "Provenance": _table(_titled(card.get("provenance") or {})),
        "More": _table(card.get("more") or {}),
        "Authors": _text(card.get("authors")),
        "Contact": _text(card.get("contact")),
        "Citation": _code("", card["citation"]) if card.get("citation") else "",
    }
    body = [f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text]
    return "\n\n".join([_front_matter(card), title, *body]) + "\n"


def _front_matter(card: Mapping[str, Any]) -> str:
    named = card.get("datasets") or card.get("dataset")
    datasets = [d for d in ([named] if isinstance(named, str) else named or []) if _HUB_ID.fullmatch(d)]
    results = card.get("results") or []
    metrics = {
        METRICS[name].hub for r in results for name in r["metrics"] if name in METRICS and name != "loss"
    }
    front = {
        "language": card.get("language"),
        **_license(card),
        "library_name": "pytorch",
        "pipeline_tag": card.get("task"),
        "tags": list(dict.fromkeys(card.get("tags") or [])),
        "datasets": datasets,
        "metrics": sorted(metrics),
        "model-index": _index(card, results),
    }
    present = {key: value for key, value in front.items() if value}
    return f"---\n{yaml.safe_dump(present, sort_keys=False, allow_unicode=True, width=1000)}---"


def _license(card: Mapping[str, Any]) -> dict[str, Any]:
    given = str(card.get("license") or "").strip()
    if not given or given.lower() in LICENSES:
        return {"license": given.lower()}
    return {"license": "other", "license_name": given, "license_link": card.get("license_link")}


def _index(card: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the results as a model-index, without values that are not finite, which the Hub refuses."""
    found = []
    for result in results:
        values = [
            {"type": METRICS[name].hub, "name": METRICS[name].title, "value": value}
            for name, value in result["metrics"].items()
            if name in METRICS and math.isfinite(value)
        ]
        data = card.get("dataset") or "unknown"
        dataset = {"type": data, "name": data, "split": SPLITS.get(result["split"], result["split"])}
        if values:
            found.append({"task": {"type": card.get("task")}, "dataset": dataset, "metrics": values})
    return [{"name": card.get("name"), "results": found}] if found else []


def _model(card: Mapping[str, Any]) -> dict[str, Any]:
    model, weights = card.get("model") or {}, card.get("weights") or {}
    network, fed, out = (model.get(key) or {} for key in ("model", "input", "output"))
    options, sparsity = _pairs(network.get("options") or {}), card.get("sparsity")
    rows = {"Network": f"{network.get('name')} ({options})" if options else network.get("name")}
    count = weights.get("parameters")
    if count is not None:
        rows["Parameters"] = f"{count:,}, {weights['nonzero']:,} of them not zero"
    if sparsity is not None:
        rows["Sparsity of the prunable weights"] = f"{sparsity:.2%}"
    if sparsity and count:
        rows["Sparsity of all parameters"] = f"{1 - weights['nonzero'] / count:.2%}"
    if fed:
        shape, mean, std = "x".join(map(str, fed["shape"])), _numbers(fed["mean"]), _numbers(fed["std"])
        rows["Input"] = f"{fed['layout']}, {fed['dtype']}, {shape}: {fed['scale']}"
        rows["Mean, std"] = f"{mean}; {std}"
    if classes := out.get("classes"):
        names = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        rows["Output"] = f"{out['kind']} of {len(classes)} classes: {names}"
    if weights.get("format"):
        packed = ", zeros packed away" if weights["compress"] else ""
        rows["File"] = f"{weights['format']}, {weights['dtype']}{packed}"
    return rows


def _usage(card: Mapping[str, Any]) -> str:
    if not (card.get("weights") or {}).get("format"):
        return ""
    end = "safetensors" if card["weights"]["format"] == "safetensors" else "pt"
    return _code(
        "python",
        f"""from peakpoint import load_model

network = load_model("production/{card["name"]}_v{card["version"]}.{end}")
# images as the table above says: float32, normalised, NCHW
logits = network(images)""",
    )


def _results(card: Mapping[str, Any]) -> str:
    results = card.get("results") or []
    if not results:
        return _table({_title(n): value for n, value in (card.get("performance") or {}).items()})
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    head = ["Split", "Images", *map(_title, names), "Of"]
    rows = []
    for result in results:
        values = [shown(name, result["metrics"].get(name)) for name in names]
        samples = "-" if result["samples"] is None else f"{result['samples']:,}"
        rows.append([SPLITS.get(result["split"], result["split"]), samples, *values, result["of"]])
    return _grid(head, rows)


def _data(card: Mapping[str, Any]) -> dict[str, Any]:
    data = card.get("data") or {}
    sizes = {"train_size": "Training images", "val_size": "Validation images"}
    return {
        "Data": data.get("name") or card.get("dataset"),
        **{title: f"{data[key]:,}" for key, title in sizes.items() if data.get(key) is not None},
        "Augmentation": data.get("augmentation"),
        "sha256 of the images": data.get("train_sha256"),
        "sha256 of the split": data.get("split_sha256"),
    }


def _training(card: Mapping[str, Any]) -> str:
    training = card.get("training") or {}
    settings = ("optimizer", "scheduler", "pruning", "batch_size", "precision", "seed")
    rows = {
        "Epoch, step": f"{training['epoch']}, {training['global_step']}" if training.get("epoch") else None,
        **_titled({key: training.get(key) for key in settings}),
        "Time": _time(training.get("hours")),
        **_titled({key: training.get(key) for key in ("attempts", "hardware", "packages")}),
    }
    return "\n\n".join(filter(None, [_table(rows), _peaks(training.get("peaks") or [])]))


def _time(hours: float | None) -> str | None:
    if hours is None:
        return None
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else f"{3600 * hours:.0f} seconds"


def _peaks(peaks: Sequence[Mapping[str, Any]]) -> str:
    if not peaks:
        return ""
    metric = peaks[0]["metric"]
    rows = [
        [p["scope"], p["best_epoch"], *(shown(metric, p[key]) for key in ("best", "final", "degradation"))]
        for p in peaks
    ]
    heading = f"{_title(metric)} on the validation split, at the peak of the run and at its end:"
    return f"{heading}\n\n{_grid(['Of', 'Best epoch', 'Best', 'At the end', 'Lost'], rows)}"


def _title(metric: str) -> str:
    return METRICS[metric].title if metric in METRICS else metric


def _titled(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("_", " ").capitalize(): value for key, value in values.items()}


def _text(value: Any) -> str:
    lines = lines_of(value)
    return "\n".join(f"- {line}" for line in lines) if isinstance(value, list | tuple) else "".join(lines)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if v not in (None, [], ""))


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _table(rows: Mapping[str, Any]) -> str:
    present = [pair for pair in rows.items() if pair[1] not in (None, "", {}, [])]
    return _grid(["", ""], present) if present else ""


def _grid(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = _pairs(value)
    elif isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return " ".join(str(value).split()).replace("|", "\\|")
