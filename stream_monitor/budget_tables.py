"""A budget of false alarms as a terminal shows it, from the JSON of the API."""

from __future__ import annotations

from rich.table import Table

from stream_monitor.records import Json

HEADINGS = {
    "shift_0.1": "shift\n0.1",
    "shift_0.25": "shift\n0.25",
    "shift_0.5": "shift\n0.5",
    "shift_1": "shift\n1",
    "shift_2": "shift\n2",
    "spread_2": "spread\nx2",
    "largest_share_minus_0.1": "top\n-10",
    "largest_share_plus_0.1": "top\n+10",
    "missing_plus_0.1": "bad\n+10",
}
"""The changes, as short as nine columns beside a name wants them in eighty characters."""

NOTE = (
    "shift: in standard deviations (of normal scores). top: the largest category's share, bad: missing values, both in "
    "points of 100. never: not in twice the longest window."
)


def budget_parts(budget: Json) -> list[str | Table]:
    """Sentences and three tables: the limits, what there is now, and at twice the budget."""
    name = f"{budget['model']} {budget['version'] or '(any version)'}"
    rate = f"{budget['events_per_second']:,g} events/s{' (assumed)' if budget['rate_assumed'] else ''}"
    between = budget["events_between_false_incidents"]
    shares = ", ".join(f"{of} {share:.0%}" for of, share in budget["shares"].items() if share)
    parts: list[str | Table] = [
        f"\n{name}: {budget['false_alarms']}, which is one false incident in {between:,} events at {rate}.",
        f"Spent on {shares}; that of data over {budget['subjects_judged']} subjects.\n",
        _limits(budget),
        _delays(budget, "events_to_find", "Events until half of such changes are found"),
        _delays(budget, "events_to_find_at_twice_the_budget", "If twice as many false incidents were accepted"),
        NOTE,
    ]
    if any(subject["below_minimum_effect"] for subject in budget["subjects"]):
        parts.append(f"(in parentheses): below drift.minimum_effect {budget['minimum_effect']:g}, nobody is told.")
    return parts


def _limits(budget: Json) -> Table:
    table = _plain("What each subject may spend, and the limits of its windows in standard deviations")
    for heading in ("a false alarm in", "limit, shortest", "longest"):
        table.add_column(heading, justify="right")
    for subject in budget["subjects"]:
        if subject["insufficient"]:
            table.add_row(subject["name"], "insufficient", f"{subject['readable_baseline_rows']} baseline rows", "")
            continue
        shortest, longest = (f"{limit:.1f}" for limit in subject["limit"].values())
        table.add_row(subject["name"], f"{short(subject['events_between_false_alarms'])} events", shortest, longest)
    return table


def _delays(budget: Json, figures: str, title: str) -> Table:
    table = _plain(title)
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for subject in budget["subjects"]:
        if not subject["insufficient"]:
            table.add_row(subject["name"], *(_cell(subject, name, subject[figures]) for name in HEADINGS))
    return table


def _plain(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("subject", overflow="fold")
    return table


def _cell(subject: Json, name: str, figures: Json) -> str:
    if name not in figures:
        return ""
    events = "never" if figures[name] is None else short(figures[name])
    return f"({events})" if name in subject["below_minimum_effect"] else events


def short(count: float) -> str:
    """Three figures and a unit.

    >>> [short(n) for n in (48, 1_234, 77_757_083, 2.5e9)]
    ['48', '1.23k', '77.8M', '2.5G']
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
