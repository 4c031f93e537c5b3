"""Write the generated pictures, or check that they are up to date: `python -m docs.generate.pictures [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.generate.architecture import architecture_pictures
from docs.generate.path import path_picture

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"


def pictures(root: Path = ROOT) -> dict[str, str]:
    """Return file name → SVG of every generated picture."""
    return {**architecture_pictures(root), "path.svg": path_picture()}


def main(arguments: list[str]) -> int:
    """Return 0, or 1 if `--check` finds a picture that is out of date."""
    stale = []
    for name, text in pictures().items():
        file = IMAGES / name
        if file.exists() and file.read_text("utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            file.write_text(text, "utf-8")
    if stale and "--check" in arguments:
        print(f"docs/images: {', '.join(stale)} out of date; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
