"""Which processes of Apex run from a data folder, and where each exposes its metrics.

Each gateway and worker keeps a card in `run/processes` while it runs; the supervisor's own state names the engines. From
both comes the list for people, and the list of targets for Prometheus (`file_sd`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from apex_memory.durable_files import write_private
from apex_memory.engines.state import Stack, read_stack

FOLDER = Path("run") / "processes"
TARGETS = "prometheus-targets.json"


class ProcessCard(BaseModel):
    """A running process: its name, such as `worker`, and where it exposes metrics. `build` is empty for engines."""

    process: str
    pid: int
    build: str = ""
    metrics: str


@contextlib.contextmanager
def registered(data_dir: Path, card: ProcessCard) -> Iterator[Path]:
    """Keep the card of this process while it runs; yield its file. Processes of the same name have a file each."""
    folder = data_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{card.process}-{card.pid}.json"
    write_private(path, card.model_dump_json() + "\n")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def running_processes(data_dir: Path) -> list[ProcessCard]:
    """Return the cards of the processes of a data folder, by name. A child of `apex up` is there while it is down, too."""
    cards = [*_supervised(read_stack(data_dir)), *_registered(data_dir)]
    by_place = {(card.process, card.metrics): card for card in cards}
    return sorted(by_place.values(), key=lambda card: (card.process, card.pid))


def targets(cards: list[ProcessCard]) -> str:
    """Return the targets as JSON for Prometheus' `file_sd_configs`: a group a process, with its name as label `process`."""
    return json.dumps([_target(card) for card in cards], indent=1) + "\n"


def _target(card: ProcessCard) -> dict[str, object]:
    metrics = urlsplit(card.metrics)
    labels = {"process": card.process, "__metrics_path__": metrics.path}
    if metrics.scheme == "https":
        labels["__scheme__"] = "https"
    return {"targets": [metrics.netloc], "labels": labels}


def write_targets(data_dir: Path) -> None:
    """Write the targets into the data folder if they changed. Every user may read them: Prometheus runs as another."""
    path = data_dir / TARGETS
    text = targets(running_processes(data_dir))
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o644)
    draft.replace(path)


def _supervised(stack: Stack | None) -> Iterator[ProcessCard]:
    if stack is None:
        return
    if stack.metrics:
        yield ProcessCard(process="supervisor", pid=stack.pid, metrics=stack.metrics)
    for child in stack.children.values():
        if child.metrics:
            yield ProcessCard(process=child.name, pid=child.pid, metrics=child.metrics)


def _registered(data_dir: Path) -> Iterator[ProcessCard]:
    """Yield the cards of running processes. The card of a killed process is removed."""
    for path in sorted((data_dir / FOLDER).glob("*.json")):
        try:
            card = ProcessCard.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue  # it ended meanwhile, or is being written
        if _runs(card.pid):
            yield card
        else:
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it runs as another user
    return True
