"""What the bench found, as values, as text for people and as JSON for comparison."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from tests.bench.measure import Sample

FEW_SECONDS = 1.0


@dataclass(slots=True)
class Row:
    """One contender of a scenario: its runs, what verifying its Maildir said, or why it did not run."""

    label: str
    messages: int = 0
    samples: list[Sample] = field(default_factory=list)
    kept: str | None = None
    faithful: bool | None = None
    failure: str | None = None
    ours: bool = False

    def failure_line(self) -> str:
        """Why it did not run, or the last thing that it said, which mostly is the point."""
        return (self.failure or "not run").strip().rpartition("\n")[2]

    @property
    def wall_s(self) -> float:
        """The median."""
        return statistics.median(sample.wall_s for sample in self.samples)

    @property
    def cpu_s(self) -> float:
        """The median, user and system together."""
        return statistics.median(sample.cpu_s for sample in self.samples)

    @property
    def rss_mib(self) -> float:
        """The largest peak of all runs."""
        return max(sample.rss_mib for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that must be reached: a figure, and the bound that it is held against."""

    text: str
    value: float | None
    bound: float
    unit: str = ""
    at_most: bool = False

    @property
    def reached(self) -> bool:
        """Whether it is; a figure that could not be measured is not."""
        if self.value is None:
            return False
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def line(self, *, judged: bool) -> str:
        """`reached      2.9× at least 2.5×: …`; in a run that is too small to judge, the figure alone."""
        verdict = ("reached" if self.reached else "NOT REACHED") if judged else "not judged"
        figure = "no figure" if self.value is None else f"{self.value:.3g}{self.unit}"
        bound = f"at {'most' if self.at_most else 'least'} {self.bound:g}{self.unit}"
        return f"{verdict:<12} {figure:>10}, {bound:<16} {self.text}"


@dataclass(slots=True)
class Scenario:
    """One comparison: what was done, by whom, and what had to be reached."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, label: str) -> Row | None:
        """The contender of that name, if it was measured."""
        return next((row for row in self.rows if row.label == label and row.samples), None)

    def times_as_fast(self, label: str, other: str) -> float | None:
        """How many times the other's median wall time is the first one's."""
        ours, theirs = self.row(label), self.row(other)
        return theirs.wall_s / ours.wall_s if ours and theirs else None


def as_text(scenario: Scenario) -> str:
    """A table with one line a contender, medians first; `time` is how many times as long as maild's line above it."""
    head: tuple[str, ...] = ("", "median s", "min – max s", "n", "msg/s", "CPU s", "peak MiB", "time", "bytes kept")
    lines = [head]
    reference: Row | None = None
    for row in scenario.rows:
        reference = row if row.ours else reference
        lines.append(_cells(row, reference if reference and reference.samples else None))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = []
    for line in lines:
        cells = [
            cell.ljust(width) if column in (0, len(head) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        table.append("  ".join(cells).rstrip())
    return "\n".join([f"{scenario.name}: {scenario.title}", *table, *(f"  {note}" for note in scenario.notes)])


def _cells(row: Row, reference: Row | None) -> tuple[str, ...]:
    if not row.samples:
        return row.label, "-", "-", "0", "", "", "", "", f"({row.failure_line()})"
    walls = [sample.wall_s for sample in row.samples]
    return (
        row.label,
        _seconds(row.wall_s),
        f"{_seconds(min(walls))} – {_seconds(max(walls))}",
        str(len(walls)),
        f"{row.messages / row.wall_s:,.0f}" if row.messages else "",
        _seconds(row.cpu_s),
        f"{row.rss_mib:.0f}",
        f"{row.wall_s / reference.wall_s:.2f}×" if reference else "",
        row.kept or "",
    )


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < FEW_SECONDS else f"{value:.2f}"


def as_json(scenario: Scenario) -> dict[str, Any]:
    """The same with every single run."""
    return {
        "name": scenario.name,
        "title": scenario.title,
        "notes": scenario.notes,
        "rows": [
            {
                "label": row.label,
                "messages": row.messages,
                "bytes_kept": row.kept,
                "faithful": row.faithful,
                "failure": row.failure,
                "median_wall_s": row.wall_s if row.samples else None,
                "runs": [
                    {"wall_s": sample.wall_s, "cpu_s": sample.cpu_s, "peak_rss_mib": sample.rss_mib}
                    for sample in row.samples
                ],
            }
            for row in scenario.rows
        ],
        "targets": [target_as_json(target) for target in scenario.targets],
    }


def target_as_json(target: Target) -> dict[str, Any]:
    """One target with its figure."""
    return {
        "text": target.text,
        "value": target.value,
        "bound": target.bound,
        "comparison": "at most" if target.at_most else "at least",
        "reached": target.reached,
    }
