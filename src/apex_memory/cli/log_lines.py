"""The lines of the logs: of Apex in both of its forms, and of the engines, as entries with fields."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LEVELS = ("debug", "info", "warning", "error", "critical")
LEVEL_NAMES = {
    **{name: name for name in LEVELS},
    **{"log": "info", "notice": "info", "detail": "info", "hint": "info", "statement": "info"},
    **{"warn": "warning", "fatal": "critical", "panic": "critical", "exception": "error"},
}
REDIS_LEVELS = {".": "debug", "-": "info", "*": "info", "#": "warning"}

# 2026-11-28T18:42:34.123456Z [info     ] request   component=gateway status=202
_CONSOLE = re.compile(r"(?P<at>\d{4}-\d\d-\d\dT[\d:.]+Z) \[(?P<level>\w+) *\] (?P<rest>.*)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_FIELD = re.compile(
    r"""(?:^|(?<=\s))([A-Za-z_]\w*)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\{[^}]*\}|\S+)"""
)
# 2026-11-28 18:42:34.123 UTC [4711] LOG:  checkpoint starting
_POSTGRES = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) \w+ \[\d+\][^:]*?\b(?P<level>[A-Z]+\d?): +(?P<rest>.*)"
)
# 4711:M 28 Nov 2026 18:42:34.123 * Ready to accept connections
_REDIS = re.compile(
    r"\d+:[A-Z] (?P<at>\d+ \w{3} \d{4} \d\d:\d\d:\d\d\.\d+) (?P<level>[.\-*#]) (?P<rest>.*)"
)
# time=2026-11-28T18:42:34.123 level=ERROR msg="service failures"
_LOGFMT = re.compile(r"time=(?P<at>\S+) level=(?P<level>\w+) (?P<rest>.*)")


@dataclass(slots=True)
class LogEntry:
    """One message of a process. `text` is as it stands in the log, the lines that continue it included."""

    process: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)
    """`timestamp` (ISO 8601), `level` and `message` where the line has them, and whatever else it names."""
    is_continued: bool = False
    """It continues a message that was returned before."""

    def extend(self, line: str) -> None:
        """Add a line that continues the message."""
        self.text += f"\n{line}"
        details = self.fields.get("details")
        self.fields["details"] = f"{details}\n{line}" if details else line

    @property
    def level(self) -> str:
        return str(self.fields.get("level", "info"))

    def json(self) -> str:
        """Return the entry as one line of JSON."""
        fields = {"message": self.text, **self.fields}
        return json.dumps({"process": self.process, **fields}, default=str)


class LineParser:
    """Makes entries of the lines of one process."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._last: dict[str, Any] = {}

    def entries(self, lines: Iterable[str]) -> Iterator[LogEntry]:
        """Yield the entries of these lines. A line without a time of its own, of a stack trace say, continues the last."""
        current: LogEntry | None = None
        for line in lines:
            fields = parse_line(line)
            if fields is None and current:
                current.extend(line)
                continue
            if current:
                yield current
            if fields is None:
                known = {**self._last, "message": line}
                current = LogEntry(self._process, line, known, is_continued=bool(self._last))
            else:
                self._last = {"timestamp": fields["timestamp"], "level": fields["level"]}
                current = LogEntry(self._process, line, fields)
        if current:
            yield current


def parse_line(line: str) -> dict[str, Any] | None:
    """Return the fields of a line; None if it has no form that is known, and so continues the one before."""
    plain = _COLOUR.sub("", line)
    if plain.startswith("{"):
        return _of_json(plain)
    if match := _CONSOLE.fullmatch(plain):
        return _with_fields(match["at"], match["level"], match["rest"])
    if match := _LOGFMT.fullmatch(plain):
        fields = _with_fields(match["at"], match["level"], match["rest"])
        return {**fields, "message": fields.pop("msg", fields["message"])}
    if match := _POSTGRES.match(plain):
        return _fields(match["at"].replace(" ", "T") + "Z", match["level"], match["rest"])
    if match := _REDIS.match(plain):
        at = datetime.strptime(match["at"], "%d %b %Y %H:%M:%S.%f").replace(tzinfo=UTC)
        return _fields(at.isoformat(), REDIS_LEVELS[match["level"]], match["rest"])
    return None


def _of_json(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    at = values.pop("timestamp", None) or values.pop("ts", None) or values.pop("time", "")
    message = values.pop("message", None) or values.pop("msg", "")
    return {**_fields(str(at), str(values.pop("level", "info")), str(message)), **values}


def _with_fields(at: str, level: str, rest: str) -> dict[str, Any]:
    """Return the fields of a text with `name=value` at its end."""
    values = list(_FIELD.finditer(rest))
    message = rest[: values[0].start()] if values else rest
    return {
        **_fields(at, level, message.strip()),
        **{match[1]: _value(match[2]) for match in values},
    }


def _fields(at: str, level: str, message: str) -> dict[str, Any]:
    name = level.lower()
    if name.startswith("debug"):  # PostgreSQL has DEBUG1 to DEBUG5
        name = "debug"
    return {"timestamp": at, "level": LEVEL_NAMES.get(name, "info"), "message": message}


def _value(text: str) -> Any:
    if text[0] not in "'\"[{" and not text.lstrip("-")[:1].isdigit():
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclass(slots=True)
class LogFilter:
    """Which entries to show: those at least of a level, of a source, and of an event."""

    level: str = "debug"
    source: str = ""
    event: str = ""
    """The id of an event, or its beginning."""
    related: set[str] = field(default_factory=set)
    """Ids of the batches and the traces in lines that name the event: what else they did is about it too."""

    @property
    def is_empty(self) -> bool:
        return not (self.source or self.event) and self.level == "debug"

    def learn(self, entry: LogEntry) -> None:
        """Take the batch and the trace of an entry that names the event."""
        if self.event not in entry.text:
            return
        ids = {entry.fields.get("batch"), entry.fields.get("trace_id")}
        self.related |= {id for id in ids if isinstance(id, str) and id}

    def accepts(self, entry: LogEntry) -> bool:
        """Return whether to show an entry."""
        if LEVELS.index(entry.level) < LEVELS.index(self.level):
            return False
        if self.source and entry.fields.get("source") != self.source:
            return False
        if not self.event:
            return True
        self.learn(entry)
        return any(id in entry.text for id in (self.event, *self.related))
