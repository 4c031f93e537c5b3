"""`apex rollout report`, `apex rollout diff`, `apex rollout accept` and `apex rollout replay`: what the other path, or a candidate build, makes of the same events."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.cells import cell_len

from apex_memory.cli.client import gateway
from apex_memory.cli.options import Limit, iso
from apex_memory.cli.output import (
    Id,
    Json,
    ago,
    console,
    duration,
    is_terminal,
    moment,
    pairs,
    rule,
    say,
    say_more,
    show_json,
    show_table,
    styled,
    wrapped,
)

CONTEXT_LINES = 2  # equal lines shown around different ones
STEPS = ("wait", "prepare", "stage", "verify", "commit", "total")
FIELDS = (
    "kind",
    "title",
    "about",
    "parent",
    "deleted",
    "occurred_at",
    "metadata",
    "entities",
    "assertions",
    "chunks",
)

Subject = Annotated[
    str,
    typer.Argument(help="A source: its Temporal path beside its direct path. Or `build`."),
]
Build = Annotated[
    str | None,
    typer.Option("--build", help="Of `build`: which one, if not the candidate."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `apex rollout`."""
    app.command("report")(report)
    app.command("diff")(diff)
    app.command("accept")(accept)
    app.command("replay")(replay)


def report(
    subject: Subject,
    build: Build = None,
    since: Annotated[str, typer.Option("--since", help="Only what was compared since then.")] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Also list events that differ only in accepted fields.")
    ] = False,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """Show how many copies were compared, equal and different, by field, with the times of both, and list differing events.

    Example: apex rollout report frontapp, or: apex rollout report build --since 1h
    """
    path = f"/v1/rollouts/{subject}/report"
    params = {"build": build, "since": iso(since), "every": every or None}
    with gateway() as api:
        first = api.call("GET", path, params={**params, "limit": min(limit, 200)})
        events, following = first["events"], first["next"]
        while following is not None and len(events) < limit:
            size = min(200, limit - len(events))
            page = api.call("GET", path, params={**params, "limit": size, "cursor": following})
            events += page["events"]
            following = page["next"]
    if json:
        show_json({**first, "events": events, "next": following})
        return
    _show_facts(first)
    show_table(
        "Differences",
        ("field", "how", "events", ""),
        [
            (row["field"], row["reason"], row["events"], "accepted" if row["accepted"] else "")
            for row in first["differences"]
        ],
        empty="",
        free=("field", "how"),
    )
    show_table(
        "Events that differ",
        ("event", "source", "differs in", "outcome", "compared"),
        [
            (
                Id(row["event"]),
                row["source"],
                ", ".join(row["fields"]),
                _outcomes(row),
                ago(row["compared_at"]),
            )
            for row in events
        ],
        empty="No event differs."
        if first["facts"]["compared"]
        else "Nothing was compared yet. Events that come while a shadow is on are: `apex rollout set SOURCE shadow`.",
        free=("differs in",),
    )
    if events:
        say((f"`apex rollout diff {events[0]['event'][:8]}` shows both sides.", "dim"), stderr=True)
    say_more(following)


def _show_facts(report: dict[str, Any]) -> None:
    facts = report["facts"]
    dropped = ", ".join(f"{count} ({reason})" for reason, count in report["dropped"].items())
    accepted = ", ".join(row["field"] for row in report["acceptances"])
    pairs(
        f"Copies of {facts['subject']}" + (f", by {facts['build']}" if facts["build"] else ""),
        {
            "compared": facts["compared"] or "",
            "equal": facts["equal"] or "",
            "different": facts["mismatched"] or "",
            "only as accepted": f"{facts['accepted']} ({accepted})" if facts["accepted"] else "",
            "given up": facts["failed"] or "",
            "waiting": facts["waiting"] or "",
            "dropped": dropped,
            "last": ago(facts["last_at"]),
            "live p50 / p99": _times(facts["live_p50"], facts["live_p99"]),
            "copy p50 / p99": _times(facts["shadow_p50"], facts["shadow_p99"]),
        },
    )
    _show_seconds(report["seconds"])


def _times(median: float | None, tail: float | None) -> str:
    if median is None or tail is None:
        return ""
    return f"{duration(median)} / {duration(tail)}"


def _show_seconds(seconds: dict[str, dict[str, float]]) -> None:
    live, shadow = seconds.get("live", {}), seconds.get("shadow", {})
    show_table(
        "Time by step",
        ("step", "live", "copy"),
        [
            (
                step,
                duration(live[step]) if step in live else "",
                duration(shadow[step]) if step in shadow else "",
            )
            for step in STEPS
            if step in live or step in shadow
        ],
        empty="",
    )


def _outcomes(row: dict[str, Any]) -> str:
    if row["live_outcome"] == row["shadow_outcome"]:
        return str(row["live_outcome"])
    return f"{row['live_outcome']} → {row['shadow_outcome']}"


def diff(
    event: Annotated[str, typer.Argument(help="The event: its id, or the first characters.")],
    json: Json = False,
) -> None:
    """Show an event beside the copy that was compared last: live on the left, the copy on the right.

    Example: apex rollout diff 0a3f6f4e
    """
    with gateway() as api:
        id = api.resolve(event)["event"]
        both = api.call("GET", f"/v1/events/{id}/diff")
    if json:
        show_json(both)
        return
    pairs(
        f"Event {both['event']}",
        {
            "source": f"{both['source']}, {both['document_key']}",
            "live": " ".join(filter(None, (both["path"], both["live_build"]))) or "live path",
            "copy": both["build"] or "temporal",
            "outcome": _outcomes(both),
            "error": both["error"],
            "compared": moment(both["compared_at"]),
            "differs in": ", ".join(dict.fromkeys(d["field"] for d in both["differences"]))
            or "nothing",
        },
    )
    _show_seconds(both["seconds"] or {})
    _show_tallies(both["tallies"] or {})
    if both["equal"]:
        return
    if both["live"] and both["shadow"]:
        _show_contents(both["live"], both["shadow"])
    for difference in both["differences"]:
        if difference["field"].partition(".")[0] in ("outcome", "error", "tallies", "vectors"):
            _show_sides(difference["field"], difference["live"], difference["shadow"])


def _show_tallies(tallies: dict[str, Any]) -> None:
    show_table(
        "In the stores",
        ("store", "live", "copy", ""),
        [
            (
                store,
                _tally(sides["live"]),
                _tally(sides["shadow"]),
                "equal" if sides["live"] == sides["shadow"] else "",
            )
            for store, sides in tallies.items()
        ],
        empty="",
    )


def _tally(tally: list[int] | None) -> str:
    return "nothing" if tally is None else f"{tally[0]} items, sum {tally[1]}"


def _show_contents(live: dict[str, Any], shadow: dict[str, Any]) -> None:
    """Show the fields in which two contents differ, and the text last."""
    for field in FIELDS:
        if live[field] != shadow[field]:
            _show_sides(field, _lines(live[field]), _lines(shadow[field]))
    if live["text"] != shadow["text"]:
        _show_sides("text", live["text"], shadow["text"])


def _lines(value: Any) -> str:
    """Return a value with an item a line, sorted where the order means nothing."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {value[key]}" for key in sorted(value))
    if isinstance(value, list):
        return "\n".join(_item(item) for item in value)
    return "" if value is None else str(value)


def _item(item: Any) -> str:
    if not isinstance(item, list):
        return str(item)
    if len(item) == 2:
        return f"{item[0]}-{item[1]}"
    predicate, subject, target, value, start = item
    place = "" if start is None else f" @{start}"
    return f"{predicate}: {subject} → {value if target is None else target}{place}"


def _show_sides(title: str, live: str, shadow: str) -> None:
    """Show two texts: side by side on a terminal, as a unified diff in a pipe."""
    rule(title)
    ours, theirs = live.splitlines(), shadow.splitlines()
    if not is_terminal():
        for line in difflib.unified_diff(
            ours, theirs, "live", "copy", n=CONTEXT_LINES, lineterm=""
        ):
            say(line)
        return
    width = console().width
    for left, mark, right in side_by_side(ours, theirs, width):
        colour = {"<": "red", ">": "green", "|": "yellow"}.get(mark, "dim")
        console().print(
            styled((left, colour), (f" {mark} ", "dim"), (right, colour)),
            no_wrap=True,
            crop=False,
            overflow="ignore",
        )


def side_by_side(
    live: Sequence[str], shadow: Sequence[str], width: int
) -> Iterator[tuple[str, str, str]]:
    """Yield rows (left, mark, right) of two texts within `width` cells; left is padded. Equal stretches are shortened.

    The mark is `|` where lines differ, `<` and `>` where only one side has the line, and a blank where both are equal.
    """
    column = max(10, (width - 3) // 2)
    matcher = difflib.SequenceMatcher(None, live, shadow, autojunk=False)
    for group in matcher.get_grouped_opcodes(CONTEXT_LINES):
        if group[0][1] > 0 or group[0][3] > 0:
            yield "…".ljust(column), " ", "…"
        for _, left, left_end, right, right_end in group:
            yield from _rows(live[left:left_end], shadow[right:right_end], column)


def _rows(
    live: Sequence[str], shadow: Sequence[str], column: int
) -> Iterator[tuple[str, str, str]]:
    for n in range(max(len(live), len(shadow))):
        ours = live[n] if n < len(live) else None
        theirs = shadow[n] if n < len(shadow) else None
        mark = "|"
        if ours is None:
            mark = ">"
        elif theirs is None:
            mark = "<"
        elif ours == theirs:
            mark = " "
        left, right = _folded(ours or "", column), _folded(theirs or "", column)
        for row in range(max(len(left), len(right))):
            text = left[row] if row < len(left) else ""
            padding = " " * (column - cell_len(text))
            yield text + padding, mark, right[row] if row < len(right) else ""


def _folded(text: str, column: int) -> list[str]:
    """Return a line as lines of at most `column` cells; words that are longer are broken."""
    folded: list[str] = []
    for line in wrapped(styled(text), column):
        rest = line.plain
        while cell_len(rest) > column:
            cut = next(n for n in range(len(rest), 0, -1) if cell_len(rest[:n]) <= column)
            folded.append(rest[:cut])
            rest = rest[cut:]
        folded.append(rest)
    return folded or [""]


def accept(
    subject: Subject,
    field: Annotated[
        str,
        typer.Argument(
            help="The field, from the report. `metadata` also accepts `metadata.channel`."
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why it is meant, for the audit log.")] = "",
    build: Build = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Do not accept it any longer.")
    ] = False,
    json: Json = False,
) -> None:
    """Accept a difference by name, so that it no longer holds the rollout.

    Example: apex rollout accept build metadata.channel --reason "the mapper names it now"
    """
    body = {"field": field, "reason": reason, "build": build, "accepted": not withdraw}
    with gateway() as api:
        answer = api.call("POST", f"/v1/rollouts/{subject}/accept", json=body)
    if json:
        show_json(answer)
        return
    accepted = ", ".join(row["field"] for row in answer["acceptances"])
    say(f"Accepted for {answer['subject']}: {accepted or 'nothing'}.")


def replay(
    build: Annotated[str, typer.Argument(help="The build, from `apex builds`.")],
    source: Annotated[str | None, typer.Option("--source", help="Only this source.")] = None,
    since: Annotated[
        str, typer.Option("--since", help="Only events received since then: `7d`, a date.")
    ] = "",
    until: Annotated[str, typer.Option("--until", help="Only events received before then.")] = "",
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "-n", min=1, help="Most copies; a range with more gives an even sample."
        ),
    ] = 10_000,
    json: Json = False,
) -> None:
    """Let a build process copies of past events, and compare: what would memory look like if it were deployed?

    A worker of that build must run: `python -m apex_memory.flows shadow` processes copies and nothing else.

    Example: apex rollout replay 0.2.0-3fa2c91d07 --source turvo --since 7d
    """
    body = {
        "build": build,
        "source": source,
        "since": iso(since),
        "until": iso(until),
        "limit": limit,
    }
    with gateway() as api:
        answer = api.call("POST", "/v1/rollouts/build/replay", json=body)
    if json:
        show_json(answer)
        return
    sample = "" if answer["queued"] == answer["events"] else f", a sample of {answer['events']}"
    say(f"{answer['queued']} events are processed again by {build}{sample}.")
    say(
        (f"`apex rollout report build --build {build}` shows how they compare.", "dim"), stderr=True
    )
