"""Checks that users arrived in the proportions they were routed in; otherwise no comparison of them holds.

Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import chdtrc

from peakpoint.deployment.abtest.router import shares

THRESHOLD = 0.001
LEAST_EXPECTED = 5
"""Expected users of an arm, from which on the chi-square approximation holds (Cochran 1954)."""


@dataclass(frozen=True)
class RatioCheck:
    """Pearson's chi-square test of the users by arm; `ok` is None while they are too few for it."""

    chi_square: float
    p_value: float
    ok: bool | None
    sentence: str


def sample_ratio(observed: Mapping[str, int], weights: Mapping[str, float]) -> RatioCheck:
    """Test the number of users by arm against the weights that they were routed by.

    A mismatch is a p-value below 0.001, the usual one of this test: it is repeated often and meant for gross
    errors.
    """
    parts = shares(weights)
    total = sum(observed.values())
    strange = sorted(alias for alias, count in observed.items() if count and not parts.get(alias))
    if strange:
        found = f"{', '.join(strange)} has users and no weight"
        return RatioCheck(math.inf, 0.0, False, _mismatch(found))
    expected = {alias: total * part for alias, part in parts.items() if part > 0}
    chi_square = math.fsum((observed.get(a, 0) - e) ** 2 / e for a, e in expected.items() if e)
    degrees = len(expected) - 1
    p_value = float(chdtrc(degrees, chi_square)) if degrees else 1.0
    if min(expected.values()) < LEAST_EXPECTED:
        sentence = f"Too few users to tell: an arm expects fewer than {LEAST_EXPECTED}."
        return RatioCheck(chi_square, p_value, None, sentence)
    if p_value < THRESHOLD:
        return RatioCheck(chi_square, p_value, False, _mismatch(f"p = {p_value:.2g}, below {THRESHOLD}"))
    return RatioCheck(
        chi_square, p_value, True, f"The arms have the users that they should (p = {p_value:.2g})."
    )


def _mismatch(found: str) -> str:
    return (
        f"Sample-ratio mismatch ({found}): do not read the outcomes. Look for an arm that fails, is slow or "
        "loses log lines, and for users sent past the router; then begin again under another experiment name."
    )
