"""The picture of an event's path through Apex, for README.md and the documentation's first page."""

from __future__ import annotations

from itertools import pairwise

from docs.generate.svg import Box, Picture

_TOP, _ROW = 96, 132  # y and height of the upper row, px
_LOW = 316  # y of the lower row, px


def path_picture() -> str:
    """Return the SVG: vendors to stores in the upper row, stores to agents in the lower one."""
    picture = Picture(
        880,
        470,
        "The path of an event: vendors, sources, inbox, pipeline, saga, four stores, search, agents",
    )
    upper = _upper_row(picture)
    stores = _stores(picture)
    _lower_row(picture, stores)
    saga = upper[-1]
    picture.arrow((saga.center[0], saga.bottom), (saga.center[0], stores.y - 2))
    picture.text(saga.center[0] - 10, 262, "all four change as one", anchor="end")
    return picture.render()


def _upper_row(picture: Picture) -> list[Box]:
    columns = [
        ("Vendors", ["mail, transport,", "trucks, bank, market,", "EDI, CRM, books,", "conversations"], "plain"),
        ("sources/", ["webhook, poll,", "stream, files, API", "verify the sender,", "split into events"], "accent"),
        ("inbox/", ["durable before", "the answer 2xx;", "no duplicates;", "P0 before P1, P2"], "accent"),
        ("pipeline/", ["parse, chunk,", "extract entities,", "embed: the", "manifest"], "accent"),
        ("saga/", ["stage unseen,", "verify counts,", "flip one pointer,", "sweep leftovers"], "accent"),
    ]  # fmt: skip
    width, gap = 148, 25
    boxes = [
        picture.box(Box(20 + index * (width + gap), _TOP, width, _ROW, title, lines, kind))
        for index, (title, lines, kind) in enumerate(columns)
    ]
    for left, right in pairwise(boxes):
        picture.arrow((left.right + 2, left.center[1]), (right.x - 2, right.center[1]))
    inbox, last = boxes[2], boxes[-1]
    band = picture.box(
        Box(
            boxes[1].x,
            22,
            last.right - boxes[1].x,
            44,
            "flows/: Temporal decides what runs when",
            ["retries, schedules, pauses, deployment; it carries ids, never bodies"],
            "band",
        )
    )
    for box in (boxes[1], inbox, boxes[3], last):
        picture.arrow((box.center[0], band.bottom), (box.center[0], box.y - 2), dashed=True)
    return boxes


def _stores(picture: Picture) -> Box:
    """Draw the four stores in one frame; return the frame."""
    frame = Box(428, 276, 432, 174, "")
    picture.box(Box(frame.x, frame.y, frame.width, frame.height, "", (), "panel"))
    picture.text(frame.center[0], 298, "stores/", kind="title", anchor="middle")
    cells = [
        ("documents", "PostgreSQL, the authority"),
        ("graph", "PostgreSQL, Neo4j, FalkorDB"),
        ("vectors", "Qdrant Edge or Qdrant"),
        ("cache", "Valkey or Redis"),
    ]
    for index, (title, engine) in enumerate(cells):
        x = frame.x + 14 + (index % 2) * 206
        y = 312 + (index // 2) * 66
        picture.box(Box(x, y, 198, 54, title, [engine], "store"))
    return frame


def _lower_row(picture: Picture, stores: Box) -> None:
    search = picture.box(
        Box(224, _LOW, 152, 94, "search/", ["one snapshot; words,", "meaning, graph, ids;", "ranked, with source"], "accent")
    )  # fmt: skip
    agents = picture.box(Box(20, _LOW, 152, 94, "Agents, people", ["HTTP API,", "command line"]))
    picture.arrow((stores.x - 2, search.center[1]), (search.right + 2, search.center[1]))
    picture.arrow((search.x - 2, search.center[1]), (agents.right + 2, search.center[1]))
