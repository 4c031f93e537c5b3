"""The queries of panels: each is an expression for Prometheus, and can be computed from the gateway's own history, too."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Labels = tuple[str, ...]
"""The values of the labels that a query groups by, in its order."""

Points = Mapping[Labels, Sequence[float]]
"""A value for each time of the history; NaN where there is none."""

Matcher = tuple[str, Literal["=", "!=", "=~", "!~"], str]

Fold = Callable[[Iterable[float]], float]
NAN = math.nan
RATE_SECONDS = 60.0  # period of a rate that is computed from the history
RANGE = "$__rate_interval"  # Grafana's period of a rate: four scrapes, or more where a point covers more


class History(Protocol):
    """Samples at regular times."""

    @property
    def times(self) -> Sequence[float]:
        """Seconds since 1970, in order."""
        ...

    def select(
        self, metric: str, matchers: Sequence[Matcher]
    ) -> Iterable[tuple[Mapping[str, str], Sequence[float]]]:
        """Yield labels and values of the matching series of a metric."""
        ...


class Query(ABC):
    """A question to the metrics, with one answer for each group of labels."""

    by: Labels

    @abstractmethod
    def promql(self) -> str:
        """Return the expression for Prometheus."""

    @abstractmethod
    def points(self, history: History) -> Points:
        """Return the values at the times of the history."""

    @abstractmethod
    def metrics(self) -> Iterable[str]:
        """Yield the names of the series that the query reads."""


@dataclass(frozen=True)
class Value(Query):
    """The value of a gauge, aggregated over processes: `sum`, `max` or `min`."""

    metric: str
    by: Labels = ()
    where: Sequence[Matcher] = ()
    aggregate: Literal["sum", "max", "min"] = "max"
    default: float | None = None
    """The value where there is no series. Only without groups."""

    def promql(self) -> str:
        text = f"{self.aggregate}{_by(self.by)} ({self.metric}{_braces(self.where)})"
        return text if self.default is None else f"{text} or vector({self.default:g})"

    def points(self, history: History) -> Points:
        groups = _groups(history, self.metric, self.by, self.where)
        folds: dict[str, Fold] = {"sum": math.fsum, "max": max, "min": min}
        fold = folds[self.aggregate]
        points = {labels: _aggregate(series, fold) for labels, series in groups.items()}
        return _with_default(points, self.default, len(history.times))

    def metrics(self) -> Iterable[str]:
        yield self.metric


@dataclass(frozen=True)
class Rate(Query):
    """How much a counter grows, per second, summed over processes."""

    metric: str
    by: Labels = ()
    where: Sequence[Matcher] = ()
    default: float | None = None
    """The rate where there is no series. Only without groups."""
    times: float = 1
    """Factor of the result: 3600 makes it per hour."""

    def promql(self) -> str:
        text = f"sum{_by(self.by)} (rate({self.metric}{_braces(self.where)}[{RANGE}]))"
        if self.times != 1:
            text = f"{text} * {self.times:g}"
        return text if self.default is None else f"{text} or vector({self.default:g})"

    def points(self, history: History) -> Points:
        groups = _groups(history, self.metric, self.by, self.where)
        points: dict[Labels, Sequence[float]] = {}
        for labels, series in groups.items():
            rates = [per_second(history.times, values) for values in series]
            points[labels] = [value * self.times for value in _aggregate(rates, math.fsum)]
        return _with_default(points, self.default, len(history.times))

    def metrics(self) -> Iterable[str]:
        yield self.metric


@dataclass(frozen=True)
class Quantile(Query):
    """A quantile of a histogram, over all processes."""

    metric: str
    q: float
    by: Labels = ()
    where: Sequence[Matcher] = ()

    def promql(self) -> str:
        buckets = f"rate({self.metric}_bucket{_braces(self.where)}[{RANGE}])"
        return f"histogram_quantile({self.q:g}, sum{_by((*self.by, 'le'))} ({buckets}))"

    def points(self, history: History) -> Points:
        groups = _groups(history, f"{self.metric}_bucket", (*self.by, "le"), self.where)
        buckets: dict[Labels, dict[float, Sequence[float]]] = {}
        for (*labels, bound), series in groups.items():
            rates = [per_second(history.times, values) for values in series]
            buckets.setdefault(tuple(labels), {})[float(bound)] = _aggregate(rates, math.fsum)
        return {
            labels: [
                quantile(self.q, [(bound, rates[n]) for bound, rates in sorted(group.items())])
                for n in range(len(history.times))
            ]
            for labels, group in buckets.items()
        }

    def metrics(self) -> Iterable[str]:
        yield f"{self.metric}_bucket"


@dataclass(frozen=True)
class Ratio(Query):
    """One query divided by another with the same groups. 0 where the divisor is 0."""

    of: Query
    to: Query

    @property
    def by(self) -> Labels:  # type: ignore[override]
        return self.of.by

    def promql(self) -> str:
        return f"({self.of.promql()}) / clamp_min({self.to.promql()}, 1e-9)"

    def points(self, history: History) -> Points:
        of, to = self.of.points(history), self.to.points(history)
        return {
            labels: [
                part / max(whole, 1e-9) for part, whole in zip(values, to[labels], strict=True)
            ]
            for labels, values in of.items()
            if labels in to
        }

    def metrics(self) -> Iterable[str]:
        yield from self.of.metrics()
        yield from self.to.metrics()


@dataclass(frozen=True)
class Age(Query):
    """Time since the newest of the points in time that a gauge holds, in seconds. 0 stands for never."""

    metric: str
    by: Labels = ()

    def promql(self) -> str:
        return f"time() - max ({self.metric} > 0)"

    def points(self, history: History) -> Points:
        groups = _groups(history, self.metric, (), ())
        return {
            labels: [
                max(0.0, now - newest) if newest > 0 else NAN
                for now, newest in zip(history.times, _aggregate(series, max), strict=True)
            ]
            for labels, series in groups.items()
        }

    def metrics(self) -> Iterable[str]:
        yield self.metric


def per_second(times: Sequence[float], values: Sequence[float]) -> list[float]:
    """Return the growth of a counter per second over the last minute before each time.

    A counter that falls started again at 0, with its process. NaN before the second sample.
    """
    rates: list[float] = []
    total = NAN  # the growth since the first sample
    totals: list[float] = []
    before = NAN
    for value in values:
        if math.isnan(before) or math.isnan(value):
            total = 0.0 if math.isnan(total) and not math.isnan(value) else total
        else:
            total += value - before if value >= before else value
        totals.append(NAN if math.isnan(value) else total)
        before = value if not math.isnan(value) else before
    first = 0
    for n, now in enumerate(times):
        while times[first] < now - RATE_SECONDS or (first < n and math.isnan(totals[first])):
            first += 1
        seconds = now - times[first]
        rates.append((totals[n] - totals[first]) / seconds if seconds > 0 else NAN)
    return rates


def quantile(q: float, buckets: Sequence[tuple[float, float]]) -> float:
    """Return a quantile of a histogram from (upper bound, cumulative rate), as Prometheus' `histogram_quantile` does."""
    if not buckets or math.isnan(buckets[-1][1]) or buckets[-1][1] <= 0:
        return NAN
    rank = q * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if math.isinf(bound):
                return lower
            share = (rank - below) / (count - below) if count > below else 0.0
            return lower + (bound - lower) * share
        lower, below = bound, count
    return lower


def matches(labels: Mapping[str, str], matchers: Sequence[Matcher]) -> bool:
    """Return whether labels fulfil all matchers. A missing label is an empty one."""
    for name, operator, expected in matchers:
        value = labels.get(name, "")
        equal = re.fullmatch(expected, value) is not None if "~" in operator else value == expected
        if equal == operator.startswith("!"):
            return False
    return True


def _by(labels: Labels) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _braces(matchers: Sequence[Matcher]) -> str:
    if not matchers:
        return ""
    return "{" + ",".join(f'{name}{operator}"{value}"' for name, operator, value in matchers) + "}"


def _groups(
    history: History, metric: str, by: Labels, where: Sequence[Matcher]
) -> dict[Labels, list[Sequence[float]]]:
    groups: dict[Labels, list[Sequence[float]]] = {}
    for labels, values in history.select(metric, where):
        groups.setdefault(tuple(labels.get(name, "") for name in by), []).append(values)
    return groups


def _aggregate(series: Sequence[Sequence[float]], fold: Fold) -> list[float]:
    """Return a fold over the series at each time, without those that have no value then."""
    points: list[float] = []
    for values in zip(*series, strict=True):
        known = [value for value in values if not math.isnan(value)]
        points.append(fold(known) if known else NAN)
    return points


def _with_default(points: Points, default: float | None, count: int) -> Points:
    if default is None:
        return points
    if not points:
        return {(): [default] * count}
    return {
        labels: [default if math.isnan(value) else value for value in values]
        for labels, values in points.items()
    }
