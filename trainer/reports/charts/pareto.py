"""The Pareto front of points that have a cost and a value."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, value) that no other beats, the cheapest first.

    A point is beaten by one that costs no more and is better, or is as good for less.
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1])):
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found
