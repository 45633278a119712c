"""Metrics: a record for each that the trainer measures, and the direction that any other name implies.

Nothing else says which values are better, their unit and how they are printed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import closest

FRACTION, NATS = "fraction", "nats"


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """A metric that the trainer measures; `better` is max or min, `title` and `short` are for people.

    `has_interval`: it is a share of the images, whose number gives a confidence interval. `hub` is the kind
    of metric in the words of the Hugging Face Hub.
    """

    name: str
    better: str
    unit: str
    title: str
    short: str
    hub: str
    has_interval: bool


METRICS = {
    record.name: record
    for record in (
        MetricRecord("accuracy", "max", FRACTION, "Accuracy", "accuracy", "accuracy", True),
        MetricRecord("top5_accuracy", "max", FRACTION, "Top-5 accuracy", "top-5", "accuracy", True),
        MetricRecord("f1_score", "max", FRACTION, "F1, macro", "F1", "f1", False),
        MetricRecord("loss", "min", NATS, "Cross-entropy, nats", "loss", "loss", False),
    )
}
"""Metrics measured on the validation and the test split, by name."""

_WORDS = {
    "min": """bpb bpc bpd brier bytes cer cost crps divergence ece eer entropy err error errors fid fnr fpr
        kid kl kld latency logloss loss losses lpips mae mape mase mse msle nll nmse perplexity ppl regret
        rmse rmsle rse smape ter wer""",
    "max": """acc accuracy ap auc auprc auroc bleu chrf cider correlation dice exact f1 fbeta fscore hits iou
        jaccard kappa likelihood map mcc meteor miou mrr ndcg pearson precision psnr r2 recall reward rouge
        sensitivity similarity sparsity spearman spearmanr specificity ssim throughput tnr top tpr""",
    # These reverse the meaning of a name, or leave it open: error_reduction, mae_std.
    "doubt": """decrease degradation diff difference drop gain gap improvement increase inv inverse minus neg
        negated negative non not reduction scale std to uncertainty var variance weight""",
}
_MEANING = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_LOSSES = {"logloss", "loss", "losses", "nll", "perplexity", "ppl"}
_SPLITS = ("training", "train", "validation", "valid", "val", "evaluation", "eval", "testing", "test", "dev")
_SEAM = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def direction(metric: str) -> str | None:
    """Return `max` or `min`, whichever is better by the name alone; None where the name does not say.

    Case, separators and the name of a split do not matter: val_loss, eval/loss, loss_val, valid-WER. Where
    the words of a name disagree, the last decides: top5_error is an error. 1-acc has no direction.
    """
    if re.match(r"\s*1(\.0*)?\s*-", metric):
        return None
    if metric in METRICS:
        return METRICS[metric].better
    found = None
    for word in _words(metric):
        found = _MEANING.get(word, found)
        if found == "doubt":
            return None
    return found


def mode_of(metric: str, remedy: str) -> str:
    """Return the direction of a name. Raises CheckpointError, ending in `remedy`, without one."""
    mode = direction(metric)
    if mode is None:
        close = closest(metric, _MEANING, 0.8)
        hint = f"did you mean {close}? If not, " if close else ""
        raise CheckpointError(
            f"The name {metric} does not say whether higher or lower is better: {hint}{remedy}"
        )
    return mode


def bad_loss(metrics: Mapping[str, float]) -> str | None:
    """Return the name of a loss that is NaN or infinite, or None; training losses are not considered."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            words = set(_words(name))
            if words & _LOSSES and not words & {"train", "training"}:
                return name
    return None


def _words(metric: str) -> Iterator[str]:
    """Yield the words of a name in lower case, in order.

    Unknown words lose a leading split and trailing digits: valLoss and valloss are val and loss, acc1 is acc.
    """
    for part in re.split(r"[^A-Za-z0-9]+", metric):
        whole = part.lower()
        for word in [whole] if whole in _MEANING else _SEAM.sub(" ", part).lower().split():
            yield from _parts(word)


def _parts(word: str) -> tuple[str, ...]:
    split = "" if word in _MEANING else next((s for s in _SPLITS if word.startswith(s)), "")
    rest = word.removeprefix(split)
    bare = rest if rest in _MEANING else rest.rstrip("0123456789")
    return (split, bare) if bare in _MEANING else (word,)


def is_fraction(metric: str) -> bool:
    """Return whether a value is printed in percent: the sparsity, or a metric that is a fraction."""
    return metric == "sparsity" or (metric in METRICS and METRICS[metric].unit == FRACTION)


def shown(metric: str, value: float | None) -> str:
    """Return a metric's value for people: percent for fractions, four decimals for others, `-` for None."""
    if value is None:
        return "-"
    return f"{value:.2%}" if is_fraction(metric) and math.isfinite(value) else f"{value:.4f}"
