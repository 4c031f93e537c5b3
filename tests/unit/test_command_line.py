"""What the command line prints: text from outside stays text, rows fit the terminal, pipes get everything."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

import apex_memory.cli as package
from apex_memory.cli import ask, events, output
from apex_memory.cli.client import COMMANDS, Gateway, explained, with_commands
from apex_memory.cli.commands import COMMANDS as COMMANDS_BY_NAME
from apex_memory.cli.commands import tree
from apex_memory.cli.demo import DayResult, progress_of, waiting_for
from apex_memory.cli.ingest import SentFile, find_files, send_files, skipped_links
from apex_memory.cli.logs import Tail, log_files
from apex_memory.cli.options import parse_time
from apex_memory.client import Busy, Forbidden, SearchAnswer
from apex_memory.client.calls import Call
from apex_memory.client.errors import refusal
from apex_memory.errors import NotFound, Rejected, Unavailable
from apex_memory.tls import ClientTls

CLI = Path(package.__file__).parent
HOSTILE = (
    "[/x]",
    "[bold red]x[/]",
    "[link=file:///etc]y[/link]",
    ":smile:",
    "\x1b]0;title\x07",
    "\u202egnp.exe",
)
ID = "0a3f6f4e-64c7-5d0f-9d83-2b8a4b0e6c11"
AT = "2026-03-03T15:15:00Z"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the output a terminal of so many columns."""

    def make(columns: int) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        for module in (output, ask, events):
            monkeypatch.setattr(module, "is_terminal", lambda *, stderr=False: True)

    return make


def test_o8_no_module_of_the_command_line_parses_text_as_markup() -> None:
    """Only `output` makes consoles, with markup off. Other parsing of rich is switched off where it is used."""
    names = ("Console", "TextColumn", "from_markup", "Markdown", "Panel")
    for file in CLI.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        if not any(name in text for name in names):
            continue  # parsing every module takes a second
        tree = ast.parse(text)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = (
                call.func.attr
                if isinstance(call.func, ast.Attribute)
                else getattr(call.func, "id", "")
            )
            options = {word.arg: word.value for word in call.keywords}
            if name in ("Console", "TextColumn"):
                off = options.get("markup")
                assert isinstance(off, ast.Constant) and off.value is False, f"{file.name}: {name}"
            assert name not in ("from_markup", "Markdown", "Panel"), f"{file.name}: {name}"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("columns", [0, 70, 120])
def test_o8_hostile_text_is_printed_literally_by_every_kind_of_output(
    text: str, columns: int, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    if columns:
        terminal(columns)
    output.say(text, (text, "bold"))
    output.say(text, indent=3)
    output.pairs(text, {text: text})
    output.show_table(text, ("a", "b"), [(text, text)], empty=text, free=("b",))
    output.show_table("", ("a",), [], empty=text)
    output.rule(text)
    printed = capsys.readouterr().out
    shown = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert shown.count(output.clean(text)) == 11
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.parametrize("text", HOSTILE)
def test_o8_hits_documents_and_events_show_hostile_text(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hit = {
        "rank": 1, "title": text, "kind": text, "source": text, "occurred_at": AT, "excerpt": text,
        "document_id": ID, "score": 1.0, "legs": {"dense": 0.5}, "why": [text],
        "snippet": text, "start": 0, "end": 1,
        "provenance": {"id": ID, "event_id": text, "version": 1, "received_at": AT},
    }  # fmt: skip
    answer = {"degraded": [text], "unknown": [text], "hits": [hit], "entities": [], "took_ms": {}}
    ask.show_answer(SearchAnswer.model_validate(answer), explain=True)
    events.show_event(event_view(title=text, last_error=text), preview=text)
    printed = capsys.readouterr().out
    assert printed.count(output.clean(text)) >= 9 and "\x1b" not in printed


def test_weak_evidence_is_one_line_and_points_are_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hit = {
        "rank": 1, "title": "t", "kind": "k", "source": "s", "occurred_at": AT, "excerpt": "x",
        "document_id": ID, "score": 1.0, "legs": {"dense": 0.5}, "why": [], "snippet": "x", "start": 0, "end": 1,
        "points": {"dense": 1.25, "asks": -2.0},
        "provenance": {"id": ID, "event_id": "e", "version": 1, "received_at": AT},
    }  # fmt: skip
    answer = {"degraded": [], "unknown": [], "hits": [hit], "entities": [], "took_ms": {}}
    for evidence, explain in (("weak", True), ("strong", False), (None, False)):
        made = SearchAnswer.model_validate({**answer, "evidence": evidence})
        ask.show_answer(made, explain=explain)
        printed = capsys.readouterr().out
        assert printed.startswith(ask.WEAK) == (evidence == "weak")
        assert ("points: dense +1.25, asks -2.00" in printed) == explain
    ask.show_answer(SearchAnswer.model_validate({**answer, "unknown": ["Z-1"], "evidence": "weak"}))
    assert ask.WEAK not in capsys.readouterr().out, "the unknown identifier says more"


def event_view(**given: Any) -> dict[str, Any]:
    at = AT
    return {
        "id": ID, "source": "edi", "event_id": "e-1", "document_id": ID, "kind": "email",
        "content_type": "application/json", "title": "Delay", "deletion": False, "state": "done",
        "payload_bytes": 2_400, "degraded": {}, "occurred_at": at, "received_at": at, "prepared_at": at,
        "ended_at": "2026-03-03T15:15:03Z", "stores": {"graph": {"state": "held", "at": at}},
        "attempts": 0, "owner": None, "deadline": None, "park_store": None, "last_error": None,
        "remedy": None, "dead_letter": None, "path": None, "build": None, "workflow_url": None,
        "trace_id": None, "trace_url": None, **given,
    }  # fmt: skip


def test_a_deletion_looks_like_a_deletion(capsys: pytest.CaptureFixture[str]) -> None:
    events.show_event(event_view())
    written = capsys.readouterr().out
    assert "Delay  email from edi, done" in written and "in graph" in written
    assert "2.4 kB of application/json" in written and "delet" not in written
    events.show_event(event_view(deletion=True, payload_bytes=0))
    deleted = capsys.readouterr().out
    assert "deletion from edi" in deleted and "out of graph" in deleted and "\ndeleted " in deleted
    assert "in graph" not in deleted and "payload" not in deleted


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_rows_fit_the_terminal_and_break_between_words(
    columns: int, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(columns)
    words = "Purchase order acknowledged by the carrier at the second terminal"
    rows = [(output.Id(ID), "quickbooks", words, "done", "12 min ago", "")] * 3
    columns_of_table = ("id", "source", "what", "state", "received", "why")
    output.show_table("Events", columns_of_table, rows, empty="", free=("what", "why"))
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= columns for line in lines)
    assert sum(ID[:8] in line for line in lines) == 3 and ID not in "".join(lines)
    if columns >= 80:
        assert len(lines) == 5, "a row is a line"
    else:
        for line in lines[2:]:
            for word in line.strip(" ·").split():
                assert (
                    word
                    in f"{words} {ID[:8]} Events id source what state done received 12 min ago quickbooks ·"
                )


def test_a_pipe_gets_whole_values_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 200 + "end"
    digest = "9f" * 32
    output.show_table(
        "", ("id", "what"), [(output.Id(ID), long), (digest, "x")], empty="", free=("what",)
    )
    output.say(long)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1] == f"{ID}{' ' * 30}{long}" and lines[2].startswith(digest) and lines[3] == long


def test_a_paragraph_may_hang_below_its_first_words(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(30)
    output.say("! worker: it runs late, so that every step takes longer", hanging=2)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    first, *others = printed.splitlines()
    assert first.startswith("! worker") and len(others) > 0
    assert all(line.startswith("  ") and line[2] != " " for line in others)
    assert all(len(line) <= 30 for line in (first, *others))


def test_a_terminal_shortens_hashes_but_no_numbers() -> None:
    assert output.short_hashes("sha256:" + "9f" * 32 + "#1") == "sha256:9f9f9f9f…#1"
    assert output.short_hashes("1795864785769000 " + ID) == "1795864785769000 " + ID


@given(
    columns=st.lists(st.tuples(st.integers(1, 90), st.booleans()), min_size=1, max_size=9),
    room=st.integers(20, 200),
)
def test_columns_fit_or_the_table_becomes_paragraphs(
    columns: list[tuple[int, bool]], room: int
) -> None:
    widths = [width for width, _ in columns]
    free = [may_be_cut for _, may_be_cut in columns]
    fitted = output.fit(widths, free, room)
    if fitted is None:
        least = [min(w, output.LEAST_FREE) if f else w for w, f in zip(widths, free, strict=True)]
        assert sum(least) + output.GAP * (len(widths) - 1) > room
        return
    assert sum(fitted) + output.GAP * (len(fitted) - 1) <= room or fitted == widths
    for before, after, may_be_cut in zip(widths, fitted, free, strict=True):
        assert after == before or (may_be_cut and output.LEAST_FREE <= after < before)


@given(text=st.text(alphabet=st.sampled_from("ab 山\n"), max_size=120), width=st.integers(1, 40))
def test_wrapping_keeps_every_word_whole(text: str, width: int) -> None:
    lines = [line.plain for line in output.wrapped(Text(text), width)]
    assert " ".join(lines).split() == text.split()
    for line in lines:
        assert cell_len(line) <= width or len(line.split()) == 1 or line.startswith(" ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "4 ms"), (0.34, "340 ms"), (7.36, "7.4 s"), (73.806, "74 s"), (790, "13 min"), (7_300, "2 h"), (180_000, "2 d")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


@pytest.mark.parametrize("text", ["2026-11-27", "2026-11-27T08:00Z", "7d", "12h", "30m"])
def test_since_takes_dates_and_distances_everywhere(text: str) -> None:
    assert parse_time(text).tzinfo


@pytest.mark.parametrize("text", ["yesterday", "7 d", "d", "", "٣d", "99999999999d"])
def test_since_refuses_what_is_no_time(text: str) -> None:
    with pytest.raises(Rejected, match="is not a time"):
        parse_time(text)


def test_every_remedy_with_a_route_names_a_command_on_the_command_line() -> None:
    """Remedies are strings in the code of the gateway and below."""
    named = 0
    for file in CLI.parent.rglob("*.py"):
        if file.parent == CLI or file.name in ("shared.py", "openapi_page.py"):
            continue
        text = file.read_text(encoding="utf-8")
        if "remedy" not in text or "/v1/" not in text:
            continue  # parsing every module takes two seconds
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.keyword)
                and node.arg == "remedy"
                and isinstance(node.value, ast.Constant)
            ):
                remedy = str(node.value.value)
                if "/v1/" in remedy:
                    named += 1
                    assert "/v1/" not in with_commands(remedy), (file.name, remedy)
    assert named >= 5
    assert (
        with_commands("check the id; GET /v1/events lists events")
        == "check the id; `apex events` lists events"
    )
    assert all(command.startswith("apex ") for command in COMMANDS.values())


def test_the_same_file_has_one_key_by_folder_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "contracts"
    (folder / "2026").mkdir(parents=True)
    file = folder / "2026" / "a [x].pdf"
    file.write_bytes(b"a")
    (folder / ".hidden").write_bytes(b"h")
    [by_folder] = find_files([folder])
    [by_name] = find_files([file])
    [both] = find_files([folder, file, folder / "2026"])
    monkeypatch.chdir(folder / "2026")
    [from_within] = find_files([Path("a [x].pdf")])
    assert {f.key for f in (by_folder, by_name, both, from_within)} == {file.resolve().as_posix()}
    [below] = find_files([file], root=tmp_path)
    assert below.key == "contracts/2026/a [x].pdf"
    with pytest.raises(Rejected, match="is not below"):
        list(find_files([file], root=tmp_path / "other"))


def test_links_that_lead_out_of_a_folder_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "id_ed25519").write_text("a private key")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("b")
    (folder / "a.txt").write_text("a")
    (folder / ".env").write_text("a password")
    (folder / "notes.txt").symlink_to(tmp_path / "id_ed25519")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "same.txt").symlink_to(folder / "a.txt")
    (folder / "env.txt").symlink_to(folder / ".env")
    links: list[Path] = []
    assert [file.path.name for file in find_files([folder], None, links)] == ["a.txt"]
    assert links == [folder / "notes.txt"]
    assert "1 link out of the folder skipped" in skipped_links(links)
    named = find_files([folder / "notes.txt", folder])
    assert [file.path.name for file in named] == ["notes.txt", "a.txt"], "who names it means it"
    (tmp_path / "link").symlink_to(folder)
    assert [file.path.name for file in find_files([tmp_path / "link"])] == ["a.txt"]


class FakeGateway(Gateway):
    """A gateway whose response to each POST of a document is the next of `outcomes`: an error, or None for success."""

    def __init__(self, outcomes: list[Exception | None]) -> None:
        super().__init__("http://127.0.0.1:1", "key", ClientTls())
        self.outcomes = outcomes
        self.sent: list[Call[Any]] = []
        self.newest: list[dict[str, Any]] = []

    def _exchange(self, call: Call[Any]) -> bytes:
        if call.path == "/v1/sources":
            return b'{"sources": [{"name": "documents", "max_body_bytes": 1000}]}'
        if call.path == "/v1/documents/newest":
            return json.dumps({"documents": self.newest}).encode()
        assert (call.method, call.path) == ("POST", "/v1/documents")
        self.sent.append(call)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome:
            raise outcome
        return json.dumps({"events": [{"id": ID, "duplicate": False}]}).encode()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Pauses pass at once, and move the clock."""
    now = [0.0]
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    for name in ("apex_memory.client.apex", "apex_memory.cli.ingest"):
        monkeypatch.setattr(f"{name}.sleep", pause)
        monkeypatch.setattr(f"{name}.monotonic", lambda: now[0])
    yield pauses


def send(api: FakeGateway, *files: Path) -> list[SentFile]:
    listed = list(find_files(files))
    send_files(api, listed, wait=False, timeout=0, quiet=True)
    return listed


def test_ingest_repeats_a_503_as_its_retry_after_says(
    tmp_path: Path, no_pauses: list[float]
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a")
    api = FakeGateway([Busy("overloaded", after=3), Unavailable("gateway", "away"), None])
    [sent] = send(api, file)
    assert sent.outcome == "new" and sent.events == [ID]
    assert no_pauses == [3, 1]
    keys = {call.headers["Idempotency-Key"] for call in api.sent}
    assert len(api.sent) == 3 and len(keys) == 1, "a repetition is a duplicate of the first"


def test_ingest_never_calls_a_file_refused_that_may_be_stored(
    tmp_path: Path, no_pauses: list[float]
) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(file.name)
    first, second = send(FakeGateway([Busy("overloaded", after=5)] * 1_000), *files)
    assert (first.outcome, second.outcome) == ("unconfirmed", "not sent")
    assert sum(no_pauses) <= 120 and "not stored twice" in first.remedy


def test_ingest_recognises_an_unchanged_file_after_touch(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a")
    api = FakeGateway([])
    [first] = send(api, file)
    event_id = api.sent[0].headers["Idempotency-Key"]
    api.newest = [{"key": first.key, "event": ID, "event_id": event_id, "state": "done"}]
    file.touch()
    [again] = send(api, file)
    assert again.outcome == "unchanged" and len(api.sent) == 1
    file.write_text("b")
    [changed] = send(api, file)
    assert changed.outcome == "new" and len(api.sent) == 2
    before, after = (call.params["version"] for call in api.sent)
    assert after > before, "the file in the folder is the newest, whatever its time says"


def test_ingest_refuses_what_it_cannot_read_and_goes_on(tmp_path: Path) -> None:
    large, fine, dangling = tmp_path / "a.bin", tmp_path / "b.txt", tmp_path / "c.txt"
    large.write_bytes(b"x" * 1_001)
    fine.write_text("b")
    dangling.write_text("c")
    listed = list(find_files([large, fine, dangling]))
    dangling.unlink()
    send_files(FakeGateway([]), listed, wait=False, timeout=0, quiet=True)
    assert [file.outcome for file in listed] == ["refused", "new", "refused"]
    assert "larger than" in listed[0].reason and "cannot be read" in listed[2].reason


def test_a_key_that_may_only_ingest_sends_and_says_that_it_sees_no_state(
    tmp_path: Path, no_pauses: list[float]
) -> None:
    class SendingOnly(FakeGateway):
        def _exchange(self, call: Call[Any]) -> bytes:
            if call.path != "/v1/documents":
                raise Forbidden("the key lacks the scope read")
            return super()._exchange(call)

    file = tmp_path / "a.txt"
    file.write_text("a")
    listed = list(find_files([file]))
    assert not send_files(SendingOnly([]), listed, wait=True, timeout=5, quiet=True)
    assert (listed[0].outcome, listed[0].state) == ("new", ""), "stored; what follows is not known"


def test_o4_the_demo_counts_every_change_as_progress_and_names_what_is_slow() -> None:
    counts = {"documents": 3, "backlog": 2, "change_hints": 0, "files": 4, "dead_letters": 0}
    row = {"title": "Carrier EDI", "error": "", **counts}
    idle = {**row, "title": "Front", "backlog": 0, "files": 0}
    before = progress_of([row, idle])
    for name in ("documents", "backlog", "change_hints", "files"):
        assert progress_of([{**row, name: counts[name] + 1}, idle]) != before
    assert waiting_for([idle, row]) == ["Carrier EDI: 2 events, 4 files"]
    assert not DayResult([row], 1.0).settled and DayResult([idle], 1.0).settled


class BusyGateway(Gateway):
    """A gateway that is busy at the first request."""

    busy = True

    def _exchange(self, call: Call[Any]) -> bytes:
        if self.busy:
            self.busy = False
            raise Busy("PostgreSQL does not respond", after=5)
        return b'{"sources": []}'


def test_o4_a_gateway_that_is_busy_for_a_moment_does_not_end_the_demo(
    no_pauses: list[float],
) -> None:
    with BusyGateway("http://127.0.0.1:1", "key", ClientTls()) as api, pytest.raises(Busy):
        api.call("GET", "/v1/sources")
    with BusyGateway("http://127.0.0.1:1", "key", ClientTls(), patience=60) as api:
        assert api.call("GET", "/v1/sources") == {"sources": []}
        assert no_pauses == [5]
        api.busy = True
        with pytest.raises(Busy):
            api.call("GET", "/v1/sources", patience=0)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


def test_logs_are_read_from_their_end_and_followed_through_a_rotation(
    tmp_path: Path, opened: ExitStack
) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"".join(b"line %d\n" % n for n in range(20_000)))
    tail = opened.enter_context(Tail(log))
    assert tail.last(2) == ["line 19998", "line 19999"]
    with log.open("ab") as more:
        more.write(b"new\nhalf")
    assert list(tail.new()) == ["new"]
    with log.open("ab") as more:
        more.write(b" and half\n")
    assert list(tail.new()) == ["half and half"]
    log.rename(tmp_path / "worker.log.1")
    log.write_bytes(b"rotated\n")
    assert list(tail.new()) == ["rotated"]
    assert [file.name for file in log_files(tmp_path, ["worker"])] == ["worker.log"]
    with pytest.raises(NotFound, match="no such log") as refused:
        log_files(tmp_path, ["wroker"])
    assert "worker" in refused.value.remedy


def test_json_is_never_wrapped_or_coloured(
    terminal: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(40)
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    output.show_json({"text": "[/x] " * 100})
    assert json.loads(out.getvalue()) == {"text": "[/x] " * 100}


@pytest.mark.parametrize(
    ("message", "remedy", "shown"),
    [
        ("path.store: Input should be 'graph' or 'vectors'", "correct path.store", ("store: Input should be 'graph' or 'vectors'", "correct store")),
        ("body.scopes.0: Input should be 'read'", "correct body.scopes.0", ("scopes.0: Input should be 'read'", "correct scopes.0")),
        ("query.limit: Input should be a number", "correct query.limit", ("limit: Input should be a number", "correct limit")),
        ("body: not JSON", "the path.of a text stays", ("body: not JSON", "the path.of a text stays")),
    ],
)  # fmt: skip
def test_a_refused_parameter_has_the_name_that_people_type(
    message: str, remedy: str, shown: tuple[str, str]
) -> None:
    body = {"error": {"code": "invalid", "message": message, "remedy": remedy}}
    refused = explained(refusal(422, json.dumps(body).encode()))
    assert (str(refused), refused.remedy) == shown


def test_a_command_that_asks_the_gateway_imports_no_engine() -> None:
    """All commands together take seconds to import on a slow machine."""
    program = """
import sys
from apex_memory.cli.commands import tree
for name in ("search", "document", "documents", "sources", "events", "dead-letters", "ingest", "status", "doctor"):
    tree(name)
heavy = ("psycopg", "redis", "temporalio", "fastapi", "uvicorn", "onnxruntime", "apex_memory.simulate", "apex_memory.stores")
print(*(name for name in heavy if name in sys.modules))
tree("up")
print("psycopg" in sys.modules)
"""
    run = [sys.executable, "-c", program]
    imported, control = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split("\n")[:2]  # fmt: skip
    assert imported == "" and control == "True"


def test_a_part_of_the_tree_has_one_command_and_an_unknown_name_all() -> None:
    names = [command.name for command in tree("search").registered_commands]
    assert names == ["search"]
    whole = tree("serch")
    groups = [group.name for group in whole.registered_groups]
    commands = [command.name for command in whole.registered_commands]
    assert sorted(map(str, commands + groups)) == sorted(COMMANDS_BY_NAME)
