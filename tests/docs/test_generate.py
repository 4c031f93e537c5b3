"""The documentation's generators: pictures are up to date, and the site's checks find what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.generate import architecture, pictures, site


def test_generated_pictures_are_up_to_date() -> None:
    for name, text in pictures.pictures().items():
        assert (pictures.IMAGES / name).read_text("utf-8") == text, f"{name}: run `make docs`"


def test_a_changed_contract_changes_the_picture(tmp_path: Path) -> None:
    package = tmp_path / "src" / "toy"
    package.mkdir(parents=True)
    (package / "high.py").write_text('"""What users see. And more."""\nimport external\n')
    (package / "low").mkdir()
    (package / "low" / "__init__.py").write_text('"""What it stands on."""\n')
    (package / "low" / "upper.py").write_text('"""Above."""\n')
    (package / "low" / "under.py").write_text('"""Below."""\n')
    (package / "lower.py").write_text('"""What is below."""\n')
    (tmp_path / "pyproject.toml").write_text(
        """
[tool.importlinter]
root_package = "toy"
[[tool.importlinter.contracts]]
name = "Down only"
type = "layers"
layers = ["toy.high", "toy.low | toy.lower"]
[[tool.importlinter.contracts]]
name = "Inside low"
type = "layers"
containers = ["toy.low"]
layers = ["upper", "under"]
[[tool.importlinter.contracts]]
name = "External is known above"
type = "forbidden"
source_modules = ["toy.low"]
forbidden_modules = ["external"]
"""
    )
    contracts = architecture.read_contracts(tmp_path)
    assert [(layers.container, layers.rows) for layers in contracts.layers] == [
        ("toy", [["high"], ["low", "lower"]]),
        ("toy.low", [["upper"], ["under"]]),
    ]
    assert contracts.forbidden == {"external": {"toy.low"}}
    drawings = architecture.architecture_pictures(tmp_path)
    assert set(drawings) == {"architecture.svg", "architecture-low.svg"}
    drawn = drawings["architecture.svg"]
    assert "What users see<" in drawn and "And more" not in drawn
    assert drawn.count("imports external") == 1
    assert "Down only." in drawn and "External is known above." in drawn


def test_links_move_with_their_page_and_a_dead_one_is_named() -> None:
    problems: list[str] = []
    text = "[a](../CONTRIBUTING.md#x) [b](adr/001-land-first.md) [c](https://temporal.io)\n```\n[d](gone.md)\n```\n"
    moved = site._moved(text, "docs/page.md", "page.md", problems)
    assert moved == text.replace("../CONTRIBUTING.md", "contributing.md")
    assert not problems
    site._moved("[e](gone.md) [f](../Makefile)", "docs/page.md", "page.md", problems)
    assert [problem.split(": ")[1] for problem in problems] == [
        "links to docs/gone.md, which the site does not have",
        "links to Makefile, which the site does not have",
    ]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="other.html">x</a>', "no such page"),
        ('<a href="#nowhere">x</a>', "no such anchor"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
    ],
)
def test_the_built_site_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, problem: str
) -> None:
    monkeypatch.setattr(site, "SITE", tmp_path)
    page = tmp_path / "index.html"
    page.write_text('<h1 id="here">x</h1><a href="index.html#here">x</a>')
    site.check()
    page.write_text(body)
    with pytest.raises(site.SiteError, match=problem):
        site.check()


def test_the_site_is_built_without_harm_to_what_is_built_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zensical empties the folder `.cache` beside its settings; that of the project holds what takes minutes to build."""
    (tmp_path / "zensical.toml").write_text(
        '[project]\nsite_name = "Site"\ndocs_dir = "build/site-src"\nsite_dir = "build/site"\n'
    )
    program = tmp_path / ".cache" / "deploy" / "program"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "PAGES", tmp_path / "build" / "site-src")
    monkeypatch.setattr(site, "SITE", tmp_path / "build" / "site")
    site.PAGES.mkdir(parents=True)
    (site.PAGES / "index.md").write_text("# Page\n")
    site.build()
    assert (site.SITE / "index.html").exists()
    assert program.exists()
