"""`apex logs`: lines of every form become entries, which are filtered, merged and followed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.cli import logs
from apex_memory.cli.log_lines import LEVELS, LineParser, LogFilter, parse_line
from apex_memory.cli.logs import Printer, Tail, log_files, new_files
from apex_memory.errors import Rejected

EVENT = "0b6c3a7e-1d7c-5b0e-9a53-0c2f6c0f9a11"
BATCH = "8f7c7a52-5d3b-4a53-9d57-3d1c1d9b0f6e"
PROGRAM = """
import logging
from apex_memory.telemetry import configure_logging, logger
configure_logging("info", "{style}")
log = logger(component="test")
log.info("a plain line", source="frontapp", events=["{event}"], n=3, reason="it's a [test] = of = all")
log.warning("short", batch="{batch}")
logging.getLogger("library").warning("a line of %s", "a library")
try:
    raise ValueError("inside")
except ValueError:
    log.exception("failed")
"""


def logged(style: str) -> list[str]:
    program = PROGRAM.format(style=style, event=EVENT, batch=BATCH)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return ran.stderr.splitlines()


@pytest.mark.parametrize("style", ["console", "json"])
def test_lines_of_apex_become_entries_in_both_forms(style: str) -> None:
    plain, short, library, failed = LineParser("worker").entries(logged(style))
    assert plain.fields["message"] == "a plain line"
    assert plain.fields["source"] == "frontapp" and plain.fields["events"] == [EVENT]
    assert plain.fields["n"] == 3
    assert plain.fields["reason"] == "it's a [test] = of = all"
    assert (short.level, short.fields["message"], short.fields["batch"]) == (
        "warning",
        "short",
        BATCH,
    )
    assert library.level == "warning" and "a line of a library" in library.text
    assert failed.level == "error"
    assert "ValueError: inside" in failed.json()
    for entry in (plain, short, library, failed):
        assert entry.fields["timestamp"].startswith("20")
        assert json.loads(entry.json())["process"] == "worker"


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("2026-11-28 18:42:34.123 UTC [4711] LOG:  checkpoint starting: time", "info", "checkpoint starting: time"),
        ("2026-11-28 18:42:34.123 UTC [4711] FATAL:  the database is starting up", "critical", "the database is starting up"),
        ("2026-11-28 18:42:34.123 UTC [4711] apex@apex ERROR:  deadlock detected", "error", "deadlock detected"),
        ("2026-11-28 18:42:34.123 UTC [4711] DEBUG2:  x", "debug", "x"),
        ("4711:M 28 Nov 2026 18:42:34.123 * Ready to accept connections tcp", "info", "Ready to accept connections tcp"),
        ("4711:M 28 Nov 2026 18:42:34.123 # WARNING overcommit", "warning", "WARNING overcommit"),
        ('time=2026-11-28T18:42:34.123 level=ERROR msg="service failures" operation=Poll', "error", "service failures"),
        ('{"level":"warn","ts":"2026-11-28T18:42:34.123Z","msg":"slow","shard":3}', "warning", "slow"),
    ],
)  # fmt: skip
def test_lines_of_engines_have_a_level_too(line: str, level: str, message: str) -> None:
    fields = parse_line(line)
    assert fields is not None
    assert (fields["level"], fields["message"]) == (level, message)
    assert fields["timestamp"].startswith("2026-11-28T18:42:34.123")


@given(st.text())
def test_no_line_breaks_the_parser(line: str) -> None:
    fields = parse_line(line)
    assert fields is None or fields["level"] in LEVELS
    [*entries] = LineParser("worker").entries([line])
    assert [json.loads(entry.json())["process"] for entry in entries] == ["worker"]


def line(level: str, text: str, at: int = 0, **fields: object) -> str:
    values = {"timestamp": f"2026-11-28T18:42:{at:02}.0Z", "level": level, "message": text}
    return json.dumps(values | fields)


def printed(
    tails: list[Tail], chosen: LogFilter, capsys: pytest.CaptureFixture[str], n: int = 9
) -> list[str]:
    Printer(chosen, as_json=True).past(tails, n)
    return [json.loads(item)["message"] for item in capsys.readouterr().out.splitlines()]


@pytest.fixture
def tails(tmp_path: Path) -> Iterator[list[Tail]]:
    """A gateway and a worker whose log was rotated, with lines about two events."""
    (tmp_path / "gateway.log").write_text(
        line("info", "landed", 1, events=[EVENT], trace_id="t1")
        + "\n"
        + line("info", "other landed", 2, events=["another"], trace_id="t2")
        + "\n"
    )
    (tmp_path / "worker.log.1").write_text(
        line("warning", "timed out", 3, batch=BATCH, source="edi") + "\n"
    )
    (tmp_path / "worker.log").write_text(
        line("info", "published", 4, batch=BATCH, events=[EVENT])
        + "\nTraceback\n  of it\n"
        + line("error", "same trace", 0, trace_id="t1")
        + "\n"
        + line("error", "nothing to do with it", 5)
        + "\n"
    )
    with ExitStack() as opened:
        yield [opened.enter_context(Tail(file)) for file in log_files(tmp_path, ())]


def test_an_event_brings_its_batch_and_its_trace_in_the_order_of_time(
    tails: list[Tail], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(tails, LogFilter(event=EVENT[:8]), capsys)
    assert lines == ["same trace", "landed", "timed out", "published"]


def test_level_and_source_filter(tails: list[Tail], capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(tails, LogFilter(level="warning"), capsys) == [
        "same trace",
        "timed out",
        "nothing to do with it",
    ]
    assert printed(tails, LogFilter(source="edi"), capsys) == ["timed out"]
    assert printed(tails, LogFilter(level="warning"), capsys, n=1) == ["nothing to do with it"]


def test_new_lines_are_filtered_and_a_stack_goes_with_its_line(
    tails: list[Tail], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show = Printer(LogFilter(level="error"), as_json=False)
    show.past(tails, 0)
    worker = next(tail for tail in tails if tail.name == "worker")
    with (tmp_path / "worker.log").open("a") as log:
        log.write(line("info", "unseen") + "\n  its details\n" + line("error", "seen") + "\n")
    show.lines("worker", list(worker.new()))
    with (tmp_path / "worker.log").open("a") as log:
        log.write("  File x\nhalf")
    show.lines("worker", list(worker.new()))
    out = capsys.readouterr().out
    assert "unseen" not in out and "its details" not in out and "half" not in out
    assert "seen" in out and "File x" in out


def test_what_was_written_before_a_rotation_is_followed_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("old\n")
    with Tail(log) as tail:
        assert tail.last(1) == ["old"]
        with log.open("a") as more:
            more.write("last words\nunfinished")
        log.rename(tmp_path / "worker.log.1")
        assert list(tail.new()) == ["last words"]
        log.write_text("new\n")
        assert list(tail.new()) == ["unfinished", "new"]
        log.write_text("")  # cut by somebody
        assert list(tail.new()) == []
        log.write_text("x\n")
        assert list(tail.new()) == ["x"]


def test_what_was_written_before_a_log_was_copied_and_cut_is_followed_to_its_end(
    tmp_path: Path,
) -> None:
    """As the supervisor does it with the log of a process that runs on."""
    log, former = tmp_path / "worker.log", tmp_path / "worker.log.1"
    former.write_text("of an earlier time\n")
    log.write_text("old\n")
    with Tail(log) as tail:
        assert tail.last(1) == ["old"]
        (tmp_path / "worker.log.part").write_text("old\nlast words\n")
        (tmp_path / "worker.log.part").replace(former)
        log.write_text("")
        assert list(tail.new()) == ["last words"]
        with log.open("a") as more:
            more.write("new\n")
        assert list(tail.new()) == ["new"]


def test_a_process_that_starts_meanwhile_is_followed(tmp_path: Path) -> None:
    (tmp_path / "gateway.log").write_text("")
    tails = [Tail(file) for file in log_files(tmp_path, ())]
    assert new_files(tmp_path, (), tails) == []
    (tmp_path / "bulk.log").write_text("up\n")
    [file] = new_files(tmp_path, (), tails)
    with Tail(file) as tail:
        assert list(tail.new()) == ["up"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(Rejected, match="loud") as refused:
        logs.logs(level="loud")
    assert "warning" in refused.value.remedy


def test_the_standard_library_logs_in_the_same_form() -> None:
    lines = logged("json")
    assert [json.loads(item)["level"] for item in lines] == ["info", "warning", "warning", "error"]
    assert json.loads(lines[2])["logger"] == "library"
