"""Spread the tests over several worker processes, each with engines of its own, and run some tests while nothing else runs.

xdist's own `--dist loadgroup` appends a test's group to its id, which pytest 9.2 no longer allows. So here each worker
writes the groups of its tests to a file, and the scheduler reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling

ALONE = "alone"
FOLDER = pytest.StashKey[TemporaryDirectory[str]]()
FILE = "groups_file"
FIRST = ("long", "engine")
"""Tests with these marks go first, in this order."""
PART = 20
"""Tests without an engine are handed out so many at a time: most take less time than handing them out one by one."""


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where to write the groups of its tests. Called in the process that distributes."""
    stash = node.config.stash
    if FOLDER not in stash:
        stash[FOLDER] = TemporaryDirectory(prefix="apex-groups-")
        node.config.add_cleanup(stash[FOLDER].cleanup)
    node.workerinput[FILE] = str(Path(stash[FOLDER].name) / f"{node.gateway.id}.json")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> AloneLast | None:
    """Use `AloneLast` for `--dist loadgroup`."""
    return AloneLast(config, log) if config.getvalue("dist") == "loadgroup" else None


def publish_groups(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Write the group of each test that has one, by the test's id, and which tests begin first. Called in a worker.

    The mark `xdist_group` names the group. Tests without this mark and without an engine form groups of `PART` neighbours.
    """
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is None:
        return
    groups = {}
    small = 0
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark is not None:
            groups[item.nodeid] = mark.args[0]
        elif item.get_closest_marker("engine") is None:
            groups[item.nodeid] = f"part {small // PART}"
            small += 1
    first = [item.nodeid for mark in FIRST for item in items if item.get_closest_marker(mark)]
    Path(workerinput[FILE]).write_text(json.dumps({"groups": groups, "first": first}))


class AloneLast(LoadGroupScheduling):  # type: ignore[misc] # xdist has no types
    """Tests of one group go to one worker. The group `ALONE` runs last, when all other workers have ended.

    Long tests go first, and then those on engines: one that begins last would leave the other workers without work. xdist
    alone begins with the groups of most tests, which here are the quickest.

    A worker holds its last test back until it receives another one or the order to shut down. So the
    workers shut down one by one as the other tests run out, and the last open one gets the group.
    """

    def schedule(self) -> None:
        if self.collection is None:
            folder = Path(self.config.stash[FOLDER].name)
            first = next(iter(self.registered_collections))
            published = json.loads((folder / f"{first.gateway.id}.json").read_text())
            self._groups: dict[str, str] = published["groups"]
            self._first = [self._split_scope(nodeid) for nodeid in published["first"]]
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return str(self._groups.get(nodeid, nodeid))

    def _assign_work_unit(self, node: Any) -> None:
        for name in reversed(self._first):
            if name in self.workqueue:
                self.workqueue.move_to_end(name, last=False)
        self._first = []
        if ALONE in self.workqueue:
            self.workqueue.move_to_end(ALONE)
            if len(self.workqueue) == 1 and len(self.nodes) > 1:
                return
        super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        if list(self.workqueue) != [ALONE] or node.shutting_down:
            super()._reschedule(node)
        elif self.nodes == [node]:
            self._assign_work_unit(node)
        elif any(not other.shutting_down for other in self.nodes if other is not node):
            node.shutdown()

    def remove_node(self, node: Any) -> str | None:
        crashed: str | None = super().remove_node(node)
        if list(self.workqueue) == [ALONE] and len(self.nodes) == 1:
            self._reschedule(self.nodes[0])
        return crashed
