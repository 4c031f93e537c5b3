"""A bad build of Apex, for the demo: a worker like any other, whose mapper of documents has a fault.

`python -m apex_memory.cli.demo_bad_build` runs it. The fault depends on the data, so no check before the rollout sees it.
"""

from __future__ import annotations

import sys

from apex_memory.errors import Rejected
from apex_memory.flows.__main__ import main
from apex_memory.model import Document, Event
from apex_memory.sources.documents.source import Documents

WORD = "dock"
"""Documents that hold this word fail."""

_document = Documents.document


def _faulty_document(self: Documents, event: Event) -> Document:
    document = _document(self, event)
    if WORD in document.text:
        raise Rejected("the planted fault of the demo's bad build")
    return document


if __name__ == "__main__":
    Documents.document = _faulty_document  # type: ignore[method-assign]
    sys.exit(main())
