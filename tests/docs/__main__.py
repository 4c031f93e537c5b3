"""`python -m tests.docs`: the commands of the README, the quickstart, the how-to pages and the runbooks, run as written.

Each page has a fresh clone of what is committed, a virtual environment of its own, and nothing of this environment but
the installed packages. Its commands are typed in their order into one terminal; each must end with code 0, and print lines
that begin as those that the page shows. `python -m tests.docs docs/quickstart.md` runs some pages, `--install` runs the
lines with `pip install` too, which takes minutes; otherwise the packages of this environment are linked.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from apex_memory.engines.base import free_port
from apex_memory.engines.process import command_and_environment
from apex_memory.engines.state import read_stack
from tests.docs.commands import ROOT, Block, Command, blocks_of, unlike
from tests.docs.pages import CANDIDATE, CLONED, given_for
from tests.docs.terminal import Terminal
from tests.e2e.build_copy import settings_of

PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/howto/*.md",
    "docs/howto/sources/*.md",
    "docs/runbooks/*.md",
)
RUNBOOKS = "docs/runbooks"
COMMAND_SECONDS = 900.0
STOP_SECONDS = 120.0
PROGRAMS = ("curl", "jq", "openssl", "prometheus", "promtool")
"""What commands need beside Apex; those whose program is missing are not run."""
INSTALL = re.compile(r"pip install\b")
LINK = """echo {packages} > "$(echo .venv/lib/python*/site-packages)/parent.pth"
printf '#!/bin/sh\\nexec "%s/.venv/bin/python" -m apex_memory.cli "$@"\\n' "$PWD" > .venv/bin/apex && chmod +x .venv/bin/apex
export PYTHONPATH="$PWD/src" """
"""In the place of an installation: the packages of this environment, and the code of the clone."""
OUTPUT_SHOWN = 2000  # characters of the output of a command that failed


@dataclass(slots=True)
class Report:
    """What was run, what was wrong, and what was not run."""

    ran: int = 0
    wrong: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


class Page:
    """One page in a folder of its own."""

    def __init__(self, name: str, folder: Path, report: Report, *, install: bool) -> None:
        self.name = name
        self._given = given_for(name)
        self._folder = folder
        self._report = report
        self._install = install
        self._port = free_port()
        self._second: Terminal | None = None
        self._environment = {
            "APEX_PORT": str(self._port),
            "COLUMNS": "200",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONUNBUFFERED": "1",
            "REPOSITORY": str(ROOT),
        }
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            self._environment[name] = os.environ[name]  # where packages come from

    def run(self, blocks: Sequence[Block]) -> None:
        """Type the commands of these blocks in their order, also those after one that fails."""
        python = self._folder / "bin" / "python3"
        python.parent.mkdir()
        python.symlink_to(Path(sys.base_prefix) / "bin" / "python3")
        for part in ("backup", "safe", "srv"):  # of machines as the pages have them
            (self._folder / part).mkdir(mode=0o711)
        self._terminal = Terminal(self._folder, self._environment)
        try:
            for command in (*(CLONED if self._given.cloned else ()), *self._given.before):
                self._type(Command(command), "")
            for block in blocks:
                for written in block.commands:
                    self._report.ran += 1
                    self._run(written, block)
        except Wrong as error:
            self._note(f"{self.name}: given: {error}")
        finally:
            if self._second:
                self._second.close()
            self._terminal.close()
            self._end_all()

    def _run(self, command: Command, block: Block) -> None:
        try:
            for beginning, others in self._given.before_command.items():
                if command.text.startswith(beginning):
                    for other in others:
                        self._type(Command(other), "")
            shown = () if block.other_output else command.shown
            self._type(Command(command.text, shown), block.place)
        except Wrong as error:
            self._note(f"{block.place}: {error}")

    def _note(self, wrong: str) -> None:
        self._report.wrong.append(wrong)
        say(f"  WRONG {wrong}")

    def _type(self, command: Command, place: str) -> None:
        """Run a command. Raises `Wrong` when it fails, takes too long, or prints something else than the page shows."""
        text = command.text
        if INSTALL.match(text) and not (self._install and place):
            text = LINK.format(packages=packages())
        for written, typed in self._substitutions().items():
            text = text.replace(written, typed)
        terminal = self._candidate() if text.startswith(CANDIDATE) else self._terminal
        try:
            ran = terminal.run(text, seconds=COMMAND_SECONDS)
        except TimeoutError as error:
            raise Wrong(f"{command.text}: not within {COMMAND_SECONDS:g} s\n{error}") from None
        first = command.text.partition("\n")[0]
        say(f"  {ran.seconds:6.1f} s  {'' if place else '(given) '}{first}")
        end = ran.output[-OUTPUT_SHOWN:]
        if ran.code:
            raise Wrong(f"{command.text}: exit code {ran.code}\n{end}")
        if "Traceback" in ran.output:
            raise Wrong(f"{command.text}: prints a traceback\n{end}")
        if missing := unlike(command.shown, ran.output):
            raise Wrong(f"{command.text}: nothing printed is like {missing}\n{end}")

    def _candidate(self) -> Terminal:
        """Return a second terminal, with the settings of the stack's worker and another build."""
        if self._second is None:
            folder = self._folder / "candidate"
            folder.mkdir()
            clone = self._folder / "apex-memory"
            stack = read_stack(clone / ".apex")
            assert stack, "the page has no stack"
            settings = settings_of(stack.children["worker"].pid)
            activated = {
                "APEX_BUILD_ID": self._given.build,
                "PATH": f"{clone / '.venv' / 'bin'}:{self._environment['PATH']}",
                "PYTHONPATH": str(clone / "src"),
            }
            self._second = Terminal(folder, self._environment | settings | activated)
        return self._second

    def _substitutions(self) -> Mapping[str, str]:
        """Return what is typed in the place of what is written: free ports, folders of this run, ids that exist."""
        return {
            ":8460": f":{self._port}",
            "apex simulate": "apex simulate --port 0",
            "prometheus --config.file": f"prometheus --web.listen-address=127.0.0.1:{self._port + 1} --config.file",
            " /backup/": f" {self._folder}/backup/",
            '"/backup/': f'"{self._folder}/backup/',
            "/srv/": f"{self._folder}/srv/",
            "/safe/": f"{self._folder}/safe/",
            **self._given.instead,
        }

    def _end_all(self) -> None:
        """Stop the stacks below the folder, and see that nothing of them is left."""
        for file in self._folder.rglob("run/stack.json"):
            if stack := read_stack(file.parents[1]):
                os.kill(stack.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while left := self._left():
            if time.monotonic() > deadline:
                self._report.wrong.append(f"{self.name}: still runs after its end: {left}")
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.2)  # the rhythm of the look

    def _left(self) -> dict[int, str]:
        """Return the processes that were started for this page, by id."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        started = {pid: command_and_environment(pid) for pid in pids}
        mark = str(self._folder)
        return {pid: text[:100] for pid, text in started.items() if mark in text}


class Wrong(Exception):
    """A command does not do what its page says."""


def packages() -> str:
    """Return the folder of the packages of this environment."""
    [folder] = Path(sys.prefix).glob("lib/python*/site-packages")
    return str(folder)


def say(line: str) -> None:
    print(line, flush=True)


def runnable(name: str, report: Report) -> list[Block]:
    """Return the blocks of a page that are run; note the others, and what is not compared, in the report."""
    chosen = []
    for block in blocks_of(name):
        missing = [
            program
            for program in PROGRAMS
            if any(re.search(rf"\b{program} ", command.text) for command in block.commands)
            and not shutil.which(program)
        ]
        if block.not_run or missing:
            reason = block.not_run or f"there is no {', '.join(missing)} here"
            report.not_run += [
                f"{block.place}: {command.text.partition(chr(10))[0]}: {reason}"
                for command in block.commands
            ]
            continue
        if block.other_output:
            report.not_run.append(f"{block.place}: the output: {block.other_output}")
        chosen.append(block)
    return chosen


@contextmanager
def page_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's unprivileged user can pass through; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="apex-docs-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__)
    parser.add_argument("pages", nargs="*", help="default: all")
    parser.add_argument("--install", action="store_true", help="run `pip install` as written")
    given = parser.parse_args()
    # Whatever ends the run, what it has started ends too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = given.pages or [
        str(file.relative_to(ROOT)) for pattern in PAGES for file in sorted(ROOT.glob(pattern))
    ]
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    report = Report()
    groups: dict[str, list[Block]] = {}
    for name in names:
        # The runbooks only look at what runs: one stack does for all of them.
        group = RUNBOOKS if name.startswith(f"{RUNBOOKS}/") else name
        groups.setdefault(group, []).extend(runnable(name, report))
    for group, blocks in groups.items():
        if blocks:
            say(f"{group}:")
            with page_folder() as folder:
                Page(group, folder, report, install=given.install).run(blocks)
    say("\nNot tested:")
    for line in report.not_run:
        say(f"  {line}")
    if not given.install:
        say("  `pip install …`: the packages of this environment were linked; --install runs it")
    if changed:
        say("  what is not committed: each page ran in a clone of what is")
    say("")
    for line in report.wrong:
        say(f"WRONG {line}\n")
    say(f"{report.ran} commands ran as written, {len(report.wrong)} were wrong")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
