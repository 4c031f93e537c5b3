"""Documentation is tested: pages are up to date, links lead somewhere, commands work, each thing is described."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from apex_memory import telemetry
from apex_memory.cli import reference
from apex_memory.cli.commands import tree
from apex_memory.cli.output import show_table
from apex_memory.config import Settings
from tests.contract.test_sources import TOY, guide_files

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]+\]\((?!https?://|#)([^)#]+)")


def commands(command: Any, path: str = "apex") -> dict[str, Any]:
    if not getattr(command, "commands", None):
        return {path: command}
    # A group may do something by itself: `apex sources` lists them.
    by_path: dict[str, Any] = {path: command} if command.invoke_without_command else {}
    for name, sub in command.commands.items():
        if not sub.hidden:
            by_path |= commands(sub, f"{path} {name}")
    return by_path


ROOT_COMMAND: Any = typer.main.get_command(tree())
COMMANDS = commands(ROOT_COMMAND)
# Groups too, and what is hidden: texts may name both.
NAMED = COMMANDS | {f"apex {name}": command for name, command in ROOT_COMMAND.commands.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_each_claim_on_security_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "discussions" / "security.md").read_text(encoding="utf-8")
    tests = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/test_*.py"))
    claims = re.findall(r"^- (.*?)(?=^- |^\S|^$)", text, re.MULTILINE | re.DOTALL)
    assert len(claims) >= 35
    for claim in claims:
        names = re.findall(r"`(test_\w+)`", claim)
        assert names, f"no test is named for: {claim}"
        assert not [name for name in names if f"def {name}(" not in tests], claim


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(
        r"`([a-z_/]+(?:\.py|/))`",
        text.partition("## Where to change what")[2].partition("\n## ")[0],
    )
    assert len(paths) >= 10
    for path in paths:
        if path != "src/apex_memory/":
            assert (ROOT / "src" / "apex_memory" / path).exists(), f"CONTRIBUTING.md names {path}"


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    [targets] = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    described = re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE)
    assert sorted(described) == sorted(targets.split())


def test_packages_of_sources_have_the_modules_that_their_overview_names() -> None:
    folder = ROOT / "src" / "apex_memory" / "sources"
    packages = {file.parent for file in folder.glob("*/__init__.py")}
    for name in ("source.py", "samples"):
        assert not [package.name for package in packages if not (package / name).exists()]
    without = {
        name: {package.name for package in packages if not (package / f"{name}.py").exists()}
        for name in ("settings", "api", "documents")
    }
    assert without == {
        "settings": {"documents"},
        "api": {"documents", "llm", "edi"},
        "documents": {"documents"},
    }


def test_generated_pages_are_up_to_date() -> None:
    for name, text in reference.pages(typer.main.get_command(tree())):
        file = ROOT / "docs" / "reference" / name
        assert file.exists() and file.read_text(encoding="utf-8") == text, (
            f"{name}: run `make docs`"
        )


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_command_describes_itself_with_an_example(path: str) -> None:
    help_text = COMMANDS[path].help or ""
    assert "Example:" in help_text and f"{path} " in help_text + " ", path
    for parameter in COMMANDS[path].params:
        assert getattr(parameter, "help", "") or parameter.name == "help", (
            f"{path} {parameter.name}"
        )


def test_every_setting_and_metric_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith((".", ")")), name
    rows = telemetry.metric_rows()
    assert len(rows) > 20
    assert all(text.endswith(".") for _, _, text in rows)


def written_commands(page: Path) -> list[str]:
    """Return the `apex …` commands of a page's console blocks and examples, without shell syntax around them."""
    text = page.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^\$ (.*)$", blocks.replace("\\\n", " "), re.MULTILINE)
    lines += re.findall(r"^ *Example: (.+)$", text, re.MULTILINE)
    run = []
    for line in lines:
        for part in re.split(r" \| |, (?:or: |then )`?", line):
            command = re.match(r"(?:[A-Z_]+=\S+ )*(apex\b[^`<>]*)", part.strip())
            if command:
                run.append(command[1])
    return run


def parse(command: str) -> None:
    """Parse a command line as `apex` does: its command, options and arguments, each of the right type. Nothing runs."""
    words = shlex.split(command, comments=True)[1:]
    at: Any = ROOT_COMMAND
    context = at.make_context("apex", words[:1] if words[:1] == ["--help"] else words)
    while getattr(at, "commands", None) and (rest := [*context._protected_args, *context.args]):
        name, at, rest = at.resolve_command(context, rest)
        context = at.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_a_page_can_be_typed_as_they_stand(page: Path) -> None:
    for command in written_commands(page):
        try:
            parse(command)
        except typer.Exit:
            pass  # --version, --help
        except Exception as error:
            pytest.fail(f"{page.name}: {command}: {error}")


def test_a_wrong_command_is_noticed() -> None:
    for command in ("apex nope", "apex sources nope", "apex events --nope", "apex event",
                    "apex dead-letters show seven", "apex stop now", "apex events -n 0"):  # fmt: skip
        with pytest.raises(Exception):  # noqa: B017
            parse(command)
    assert len(written_commands(ROOT / "docs" / "quickstart.md")) >= 10
    assert len(written_commands(ROOT / "docs" / "reference" / "cli.md")) >= 40


def test_commands_in_texts_and_in_the_code_exist() -> None:
    """Words in backticks, such as the remedy of an error: the command and its options exist; arguments may be left out."""
    files = [*PAGES, *ROOT.glob("src/**/*.py")]
    for file in files:
        for words in re.findall(r"`apex ([a-z][^`\n]*)`", file.read_text(encoding="utf-8")):
            named = [path for path in NAMED if f"apex {words} ".startswith(f"{path} ")]
            path = max(named, key=len, default="")
            assert path, f"{file.name}: apex {words}"
            rest = f"apex {words}".removeprefix(path).split()
            is_group = bool(getattr(NAMED[path], "commands", None))
            assert not (is_group and rest and rest[0][0].islower()), f"{file.name}: apex {words}"
            parameters = NAMED[path].params
            known = {name for parameter in parameters for name in parameter.opts}
            for option in re.findall(r"(?:^| )(--?[a-z][\w-]*)", words):
                assert option in known, f"{file.name}: apex {words}: {option}"


def test_make_targets_in_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_a_wrong_setting_is_refused_with_its_name_and_the_way_out() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "apex_memory.cli", "status"],
        env={"PATH": "", "APEX_BATCH_MAX": "many"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1 and "batch_max" in ran.stderr and "settings.md" in ran.stderr
    assert "Traceback" not in ran.stderr
    unknown = subprocess.run(
        [sys.executable, "-m", "apex_memory.cli", "status"],
        env={"PATH": "", "APEX_BATCHMAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert unknown.returncode == 1 and "APEX_BATCHMAX" in unknown.stderr


@pytest.mark.parametrize(
    "words", [[], ["sources", "backfill"], ["ingest"], ["search"]], ids=" ".join
)
def test_help_cuts_no_word_on_a_narrow_terminal(words: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "apex_memory.cli", *words, "--help"],
        env={"PATH": "", "COLUMNS": "50", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "…" not in ran.stdout and "\x1b" not in ran.stdout
    path = " ".join(["apex", *words])
    for parameter in (COMMANDS.get(path) or ROOT_COMMAND).params:
        for option in parameter.opts:
            assert option in ran.stdout, option


def test_one_file_adds_a_source(tmp_path: Path) -> None:
    """Its route, its settings and its docs row appear; the contract suite runs over it in test_sources."""
    (tmp_path / "toy.py").write_text(TOY)
    script = f"""
import json
from apex_memory.config import Settings
from apex_memory.gateway.application import create_app
from apex_memory.sources.registry import classes
from apex_memory.cli import reference
settings = Settings(source_path={str(tmp_path)!r}, sources={{"toy": {{"secret": "s"}}}})
paths = create_app(settings).openapi()["paths"]
page = reference.sources_page(classes(settings.source_path))
print(json.dumps([sorted(paths), page]))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    paths, page = json.loads(ran.stdout)
    assert "/hooks/toy" in paths
    assert "[`toy`](#toy)" in page and "`secret`" in page and "Toys that tell" in page


def test_a_cell_with_a_style_shows_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("", ("state", "text"), [(Text("idle", style="green"), "[green]raw[/]")], empty="")
    assert "idle   [green]raw[/]" in capsys.readouterr().out


def test_the_guide_for_a_new_source_names_every_file_of_its_package() -> None:
    """tests/contract/test_sources.py runs the contract tests over them."""
    assert sorted(guide_files()) == [
        f"parcels/{name}.py" for name in ("__init__", "api", "documents", "settings", "source")
    ]
