"""Build the documentation site: `python -m docs.generate.site`. The result is in `build/site`.

The pages are the Markdown files of the repository as they are, so links between them are those that a forge follows. This
program gathers them into one folder, rewrites links for the new places, lets Zensical build, and checks every link of the
result. It fails on a link that leads nowhere, a page that the navigation lacks, and anything that a page would load from
elsewhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "build" / "site-src"
SITE = ROOT / "build" / "site"

# Pages of the repository's root, and what they are called in the site.
ROOT_FILES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "NOTICE": "NOTICE.txt",
    "LICENSE": "LICENSE.txt",
}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))|((?:src|href)=\")([^\"]+)(\")")


class SiteError(Exception):
    """The site cannot be built; the message lists every reason."""


def site_path(path: str) -> str | None:
    """Return where a file of the repository is in the site; None if the site does not have it."""
    if path in ROOT_FILES:
        return ROOT_FILES[path]
    place = PurePosixPath(path)
    if place.parts[0] != "docs" or place.suffix == ".py":
        return None
    inner = PurePosixPath(*place.parts[1:])
    return str(inner.with_name("index.md") if inner.name == "README.md" else inner)


def gather() -> None:
    """Copy pages and pictures to `PAGES`. Raise `SiteError` for links to files that the site does not have."""
    shutil.rmtree(PAGES, ignore_errors=True)
    problems: list[str] = []
    for file in _sources():
        path = file.relative_to(ROOT).as_posix()
        target = site_path(path)
        if target is None:
            continue
        copy = PAGES / target
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            copy.write_text(_moved(file.read_text("utf-8"), path, target, problems), "utf-8")
        else:
            shutil.copyfile(file, copy)
    problems += [f"{page}: not in the navigation of zensical.toml" for page in _unlisted()]
    if problems:
        raise SiteError("\n".join(problems))


def build() -> None:
    """Let Zensical build the site, from a copy of its settings.

    With `--clean` it empties the folder `.cache` beside them, which in the project's root holds programs that take long to build.
    """
    shutil.rmtree(SITE, ignore_errors=True)
    settings = PAGES.parent / "zensical.toml"
    text = (ROOT / settings.name).read_text("utf-8")
    settings.write_text(text.replace(f'"{PAGES.parent.name}/', '"'), "utf-8")
    program = Path(sys.executable).with_name("zensical")
    ran = subprocess.run(
        [program, "build", "--clean", "--strict"],
        cwd=settings.parent,
        check=False,
        capture_output=True,
        text=True,
    )
    if ran.returncode != 0:
        raise SiteError(f"{ran.stdout}{ran.stderr}")


def check() -> None:
    """Check that every link of the site leads somewhere inside it, anchors included, and that nothing is loaded from elsewhere."""
    pages = {file: _Page.read(file) for file in sorted(SITE.rglob("*.html"))}
    problems = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links start at the address of the site
            continue
        name = file.relative_to(SITE)
        problems += [f"{name}: loads {address}" for address in page.loaded if _external(address)]
        for link in [*page.links, *page.loaded]:
            problem = _broken(link, file, pages)
            if problem:
                problems.append(f"{name}: {link}: {problem}")
    if problems:
        raise SiteError("\n".join(problems))


class _Page(HTMLParser):
    """The anchors, the links, and the loaded resources of one HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    @classmethod
    def read(cls, file: Path) -> _Page:
        page = cls()
        page.feed(file.read_text("utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := values.get(key)))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        if tag in ("script", "img", "source", "iframe") and values.get("src"):
            self.loaded.append(values["src"] or "")
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loaded.append(values.get("href") or "")


def _sources() -> Iterator[Path]:
    yield from (ROOT / name for name in ROOT_FILES)
    yield from sorted(file for file in (ROOT / "docs").rglob("*") if file.is_file())


def _moved(text: str, path: str, target: str, problems: list[str]) -> str:
    """Return the text of a page with its relative links rewritten for the page's place in the site."""
    folder = str(PurePosixPath(path).parent)

    def rewrite(match: re.Match[str]) -> str:
        before, link, after = (part for part in match.groups() if part is not None)
        address = urlsplit(link)
        if address.scheme or address.netloc or not address.path:
            return match.group(0)
        linked = normpath(f"{folder}/{address.path}")
        moved = site_path(linked)
        if moved is None or not (ROOT / linked).exists():
            problems.append(f"{path}: links to {linked}, which the site does not have")
            return match.group(0)
        new = relpath(moved, str(PurePosixPath(target).parent))
        anchor = f"#{address.fragment}" if address.fragment else ""
        return f"{before}{new}{anchor}{after}"

    # Code blocks stay as they are.
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(rewrite, part) for part in parts)


def _unlisted() -> list[str]:
    """Pages that the navigation does not name."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    listed = set(_named(project["nav"]))
    pages = [file.relative_to(PAGES).as_posix() for file in PAGES.rglob("*.md")]
    return sorted(page for page in pages if page not in listed)


def _named(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list):
        for item in nav:
            yield from _named(item)
    elif isinstance(nav, dict):
        yield from _named(list(nav.values()))


def _external(link: str) -> bool:
    address = urlsplit(link)
    return bool(address.netloc) or address.scheme in ("http", "https")


def _broken(link: str, file: Path, pages: dict[Path, _Page]) -> str:
    """Why a link leads nowhere; empty if it leads somewhere."""
    address = urlsplit(link)
    if address.scheme or address.netloc:
        return ""
    target = (file.parent / unquote(address.path)).resolve() if address.path else file
    if target.is_dir():
        target = target / "index.html"
    if not target.exists():
        return "no such page"
    anchor = unquote(address.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "no such anchor"
    return ""


def main() -> int:
    """Build and check the site; return 1 and print what is wrong if it cannot be built."""
    try:
        gather()
        build()
        check()
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{SITE.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
