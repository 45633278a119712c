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
    sections = [
        ("", _text(card.get("description"))),
        ("Model", _table(_model_rows(card))),
        ("Intended use", _text(card.get("intended_use"))),
        ("Out of scope", _text(card.get("out_of_scope"))),
        ("Limitations", _text(card.get("limitations"))),
        ("Ethical considerations", _text(card.get("ethical_considerations"))),
        ("How to use it", _usage(card)),
        ("Results", _results(card)),
        ("Data", _table(_data_rows(card))),
        ("Training", _training(card)),
        ("Provenance", _table(_provenance_rows(card))),
        ("More", _table((key, value) for key, value in (card.get("more") or {}).items())),
        ("Authors", _text(card.get("authors"))),
        ("Contact", _text(card.get("contact"))),
        ("Citation", _code("", card["citation"]) if card.get("citation") else ""),
    ]
    body = [f"## {name}\n\n{text}" if name else text for name, text in sections if text]
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


def _model_rows(card: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    model, weights = card.get("model") or {}, card.get("weights") or {}
    network, fed, out = (model.get(key) or {} for key in ("model", "input", "output"))
    options = _pairs(network.get("options"))
    yield "Network", f"{network.get('name')} ({options})" if options else network.get("name")
    if (count := weights.get("parameters")) is not None:
        yield "Parameters", f"{count:,}, {weights['nonzero']:,} of them not zero"
    if (sparsity := card.get("sparsity")) is not None:
        yield "Sparsity of the prunable weights", f"{sparsity:.2%}"
    if sparsity and count:
        yield "Sparsity of all parameters", f"{1 - weights['nonzero'] / count:.2%}"
    if fed:
        yield "Input", f"{fed['layout']}, {fed['dtype']}, {'x'.join(map(str, fed['shape']))}: {fed['scale']}"
        yield "Mean, std", f"{_numbers(fed['mean'])}; {_numbers(fed['std'])}"
    if classes := out.get("classes"):
        names = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        yield "Output", f"{out['kind']} of {len(classes)} classes: {names}"
    if weights.get("format"):
        packed = ", zeros packed away" if weights["compress"] else ""
        yield "File", f"{weights['format']}, {weights['dtype']}{packed}"


def _usage(card: Mapping[str, Any]) -> str:
    if not (card.get("weights") or {}).get("format"):
        return ""
    end = "safetensors" if card["weights"]["format"] == "safetensors" else "pt"
    lines = [
        "from peakpoint import load_model",
        "",
        f'network = load_model("production/{card["name"]}_v{card["version"]}.{end}")',
        "# images as the table above says: float32, normalised, NCHW",
        "logits = network(images)",
    ]
    return _code("python", "\n".join(lines))


def _results(card: Mapping[str, Any]) -> str:
    results = card.get("results") or []
    if not results:
        return _table((_title(n), v) for n, v in (card.get("performance") or {}).items())
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    head = ["Split", "Images", *map(_title, names), "Of"]
    rows = []
    for result in results:
        values = [shown(name, result["metrics"].get(name)) for name in names]
        samples = "-" if result["samples"] is None else f"{result['samples']:,}"
        rows.append([SPLITS.get(result["split"], result["split"]), samples, *values, result["of"]])
    return _grid(head, rows)


def _data_rows(card: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    data = card.get("data") or {}
    yield "Data", data.get("name") or card.get("dataset")
    for key, title in (("train_size", "Training images"), ("val_size", "Validation images")):
        if data.get(key) is not None:
            yield title, f"{data[key]:,}"
    yield "Augmentation", data.get("augmentation")
    for key, title in (("train_sha256", "sha256 of the images"), ("split_sha256", "sha256 of the split")):
        yield title, data.get(key)


def _training(card: Mapping[str, Any]) -> str:
    training = card.get("training") or {}

    def named(*keys: str) -> Iterable[tuple[str, Any]]:
        for key in keys:
            value = training.get(key)
            yield key.replace("_", " ").capitalize(), value

    rows = [
        ("Epoch, step", f"{training['epoch']}, {training['global_step']}" if training.get("epoch") else None),
        *named("optimizer", "scheduler", "pruning", "batch_size", "precision", "seed"),
        ("Time", _time(training.get("hours"))),
        *named("attempts", "hardware", "packages"),
    ]
    return "\n\n".join(filter(None, [_table(rows), _peaks(training.get("peaks") or [])]))


def _time(hours: float | None) -> str | None:
    if hours is None:
        return None
    seconds = 3600 * hours
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


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


def _provenance_rows(card: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in (card.get("provenance") or {}).items():
        yield key.replace("_", " ").capitalize(), value


def _text(value: Any) -> str:
    lines = lines_of(value)
    return "\n".join(f"- {line}" for line in lines) if isinstance(value, list | tuple) else "".join(lines)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{k} {v}" for k, v in (values or {}).items() if v not in (None, [], ""))


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    present = [[name, value] for name, value in rows if value not in (None, "", {}, [])]
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
