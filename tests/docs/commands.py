"""The commands of the docs' pages: what stands in their `console` and `sh` blocks, and what a page says about running them.

Two comments in the source of a page decide, each with a reason. `<!-- not run: … -->` before a block leaves it out,
`<!-- no command is run: … -->` anywhere leaves out the page, and `<!-- other output: … -->` before a block runs it and
does not compare what it prints with what the page shows.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<mark>not run|other output): (?P<reason>[^>]*?) -->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<kind>console|sh)\n(?P<text>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)
WHOLE_PAGE = re.compile(r"<!-- no command is run: ([^>]*?) -->")
WORDS = re.compile(r"[^0-9/:,(]*")
"""The beginning of a line, before what differs from run to run: numbers, ids, times, paths."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command as it is written, and the lines that the page shows below it."""

    text: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A block of commands in a page."""

    place: str
    """The page and the line of the first command."""
    commands: Sequence[Command]
    not_run: str = ""
    """Why it is left out; empty when it is run."""
    other_output: str = ""
    """Why what it prints is not compared; empty when it is."""


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page of this repository, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    whole = WHOLE_PAGE.search(text)
    blocks = []
    for match in BLOCK.finditer(text):
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines()]
        prompt = "$ " if match["kind"] == "console" else ""
        reason = " ".join((match["reason"] or "").split())
        line = text.count("\n", 0, match.start("text")) + 1
        blocks.append(
            Block(
                place=f"{page}:{line}",
                commands=list(_commands(lines, prompt)),
                not_run=whole[1] if whole else reason if match["mark"] == "not run" else "",
                other_output=reason if match["mark"] == "other output" else "",
            )
        )
    return blocks


def _commands(lines: Sequence[str], prompt: str) -> Iterator[Command]:
    """Yield the commands. Each begins with the prompt and goes on until the shell has all of it; what follows is output."""
    written = ""
    shown: list[str] = []
    for line in lines:
        if written and not _is_complete(written):
            written += f"\n{line}"
        elif line.startswith(prompt):
            if written:
                yield Command(written, tuple(shown))
            written, shown = line.removeprefix(prompt), []
        else:
            shown.append(line)
    if written:
        yield Command(written, tuple(shown))


def _is_complete(command: str) -> bool:
    """Return whether the shell would run it: no quote or here-document is open, and the last line does not go on."""
    if command.endswith("\\"):
        return False
    read = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
    return not read.returncode and not read.stderr


def unlike(shown: Sequence[str], output: str) -> list[str]:
    """Return the lines of a page to which no line of the output is like: none begins with the same words.

    Words count up to the first number, path or punctuation mark. A line that begins with one of these is not compared.
    """
    lines = [" ".join(line.split()) for line in output.splitlines()]
    missing = []
    for line in shown:
        match = WORDS.match(" ".join(line.split()))
        words = match[0].rstrip() if match else ""
        if words and not any(actual.startswith(words) for actual in lines):
            missing.append(line)
    return missing
