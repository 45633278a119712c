"""Whether users arrived in the proportions that they were routed in; if not, no comparison of them holds.

Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from peakpoint.deployment.abtest.router import shares

THRESHOLD = 0.001
LEAST_EXPECTED = 5
"""Users that an arm must expect for the chi-square approximation to hold (Cochran 1954)."""


@dataclass(frozen=True)
class RatioCheck:
    """Pearson's chi-square test of users by arm: `ok` is None while there are too few to tell."""

    chi_square: float
    p_value: float
    ok: bool | None
    sentence: str


def sample_ratio(observed: Mapping[str, int], weights: Mapping[str, float]) -> RatioCheck:
    """Test the number of users by arm against the weights that they were routed by.

    A mismatch is a p-value below 0.001, as usual for this test: it is made often, and is there for gross
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
    p_value = chi_square_tail(chi_square, len(expected) - 1)
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


def chi_square_tail(x: float, dof: int) -> float:
    """P(X >= x) for a chi-square of `dof` degrees of freedom, 0 or more.

    The regularised upper incomplete gamma Q(dof / 2, x / 2), which for whole dof is a finite sum: Q(1/2, y)
    is erfc(sqrt(y)), Q(1, y) is exp(-y), and Q(a + 1, y) = Q(a, y) + y^a exp(-y) / gamma(a + 1) (NIST DLMF
    8.8.6).
    """
    y = x / 2
    if dof == 0 or y <= 0:
        return 1.0
    a, tail = (0.5, math.erfc(math.sqrt(y))) if dof % 2 else (1.0, math.exp(-y))
    while a < dof / 2:
        tail += math.exp(a * math.log(y) - y - math.lgamma(a + 1))
        a += 1
    return min(tail, 1.0)
