"""How the commands of the pages are read and compared, before `make docs-commands` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import commands
from tests.docs.__main__ import PAGES
from tests.docs.commands import ROOT, Block, Command, blocks_of, unlike
from tests.docs.pages import GIVEN
from tests.docs.terminal import Terminal

PAGE = """# A page

```console
$ apex backup /backup/a
Backup written to /backup/a: 184,203 rows in 31 tables.
$ curl -d '{"key": 1,
    "text": 2}' \\
    http://127.0.0.1
```

<!-- not run: needs an account -->

```console
$ apex sources
```

1. In a list:

   <!-- other output: nothing waits -->

   ```console
   $ apex status
   It waits.
   ```

```sh
export A=1   # a comment
cat <<END
b
END
```
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    (tmp_path / "page.md").write_text(PAGE)
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    return blocks_of("page.md")


def test_blocks_have_their_commands_output_and_marks(read: list[Block]) -> None:
    backup, marked, listed, script = read
    assert backup.place == "page.md:4" and not backup.not_run
    assert backup.commands == [
        Command(
            "apex backup /backup/a", ("Backup written to /backup/a: 184,203 rows in 31 tables.",)
        ),
        Command('curl -d \'{"key": 1,\n    "text": 2}\' \\\n    http://127.0.0.1'),
    ]
    assert marked.not_run == "needs an account" and not marked.other_output
    assert listed.other_output == "nothing waits" and not listed.not_run
    assert listed.commands == [Command("apex status", ("It waits.",))]
    assert script.commands == [Command("export A=1   # a comment"), Command("cat <<END\nb\nEND")]


def test_a_mark_for_a_page_holds_for_all_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text("<!-- no command is run: needs a cluster -->\n" + PAGE)
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    assert {block.not_run for block in blocks_of("page.md")} == {"needs a cluster"}


def test_output_is_compared_by_the_words_before_what_differs() -> None:
    shown = [
        "build             role  share",
        "0.2.0-1d  current",
        "Restored 52,311 documents, in 3 s.",
    ]
    assert not unlike(shown, "build  role  share\n0.3.0-ff  waiting\nRestored 7 documents")
    assert unlike(shown, "build  role\nRestoring") == [shown[0], shown[2]]


def test_a_terminal_keeps_variables_and_notices_what_fails_or_never_ends(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, {"PATH": "/usr/bin:/bin"})
    try:
        assert terminal.run("A='one two'; cd /", seconds=10).code == 0
        ran = terminal.run('echo "$A in $PWD"; false', seconds=10)
        assert (ran.code, ran.output.strip()) == (1, "one two in /")
        assert terminal.run("cat", seconds=10).code == 0, "nothing is there to read"
        with pytest.raises(TimeoutError):
            terminal.run("echo begun; sleep 60", seconds=0.5)
    finally:
        terminal.close()


def test_every_page_for_which_something_is_given_has_commands() -> None:
    pages = {str(file.relative_to(ROOT)) for pattern in PAGES for file in ROOT.glob(pattern)}
    for page in GIVEN:
        names = (
            [page] if page.endswith(".md") else [name for name in pages if name.startswith(page)]
        )
        blocks = [block for name in names if name in pages for block in blocks_of(name)]
        assert any(not block.not_run for block in blocks), page


def test_marks_that_stand_before_no_block_are_noticed() -> None:
    for pattern in PAGES:
        for file in ROOT.glob(pattern):
            page = str(file.relative_to(ROOT))
            text = file.read_text(encoding="utf-8")
            marked = [block for block in blocks_of(page) if block.not_run or block.other_output]
            marks = text.count("<!-- not run:") + text.count("<!-- other output:")
            assert marks == len(marked) or "<!-- no command is run:" in text, page
