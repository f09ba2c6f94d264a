"""Medians, their spread, and how sure a ratio of them is."""

import random
from collections.abc import Iterable, Sequence
from statistics import median, quantiles

RESAMPLES = 2000


def spread(seconds: Sequence[float]) -> str:
    """Median and the middle half of durations, in milliseconds."""
    if len(seconds) < 2:
        return f"{1000 * seconds[0]:.0f} ms"
    low, middle, high = (1000 * value for value in quantiles(seconds, n=4, method="inclusive"))
    return f"{middle:.0f} ms ({low:.0f}–{high:.0f})"


def ratio(ours: Sequence[float], plain: Sequence[float]) -> float:
    """Ratio of the medians."""
    return median(ours) / median(plain)


def ratio_interval(ours: Sequence[float], plain: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the ratio, by resampling both sides (percentile bootstrap)."""
    draw = random.Random(1)
    return _middle(
        ratio(draw.choices(ours, k=len(ours)), draw.choices(plain, k=len(plain)))
        for _ in range(RESAMPLES)
    )


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of the pairs' ratios: what slows down both sides of a pair cancels out."""
    return median(ours / plain for ours, plain in pairs)


def paired_interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95 % interval of the paired ratio, by resampling the pairs."""
    draw = random.Random(1)
    return _middle(paired_ratio(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))


def _middle(drawn: Iterable[float]) -> tuple[float, float]:
    ordered = sorted(drawn)
    return ordered[int(0.025 * RESAMPLES)], ordered[int(0.975 * RESAMPLES)]


def slope(steps: Sequence[float], values: Sequence[float]) -> float:
    """Median of the slopes between all pairs of points (Theil–Sen): outliers do not bend it."""
    points = list(zip(steps, values, strict=True))
    return median(
        (value - before) / (step - since)
        for number, (step, value) in enumerate(points)
        for since, before in points[:number]
    )
