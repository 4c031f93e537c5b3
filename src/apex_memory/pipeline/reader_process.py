"""Reads office files with xberg in a process of its own. Started by `reader.py` by this file's path.

It imports nothing of Apex, so it starts fast. A request is a line of JSON and then `size` bytes; an
answer is a line of JSON with `size`, and then that many bytes of JSON. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, BinaryIO

import xberg

NICENESS = 10
"""The event loops of worker and gateway come first on a busy processor: a storm of files must not slow messages."""


def limit_memory(most: int) -> None:
    """Let allocations beyond `most` bytes fail, where the system can do that."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def configuration(style: str, most: int) -> xberg.ExtractionConfig:
    return xberg.ExtractionConfig(
        use_cache=False,
        disable_ocr=True,
        enable_quality_processing=False,
        output_format=style,
        escape_markdown=False,
        max_archive_depth=0,
        html_options=xberg.ConversionOptions(extract_metadata=False),
        concurrency=xberg.ConcurrencyConfig(max_threads=1),
        security_limits=xberg.SecurityLimits(
            max_archive_size=8 * most, max_content_size=10 * most, max_table_cells=1_000_000
        ),
    )


async def read(request: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`{text, title, pages, cut, …}` of a file, or `{error}` with the kind of failure."""
    most = int(request["most"])
    wanted = xberg.ExtractInput(kind="bytes", bytes=data, mime_type=request["type"])
    try:
        result = await xberg.extract(wanted, configuration(request["style"], most))
    except Exception as error:  # noqa: BLE001 -- the outermost loop of this process; native errors are plain RuntimeErrors
        # Their text may quote the file, so only its start is kept.
        return {"error": str(error).partition(":")[0][:60] or type(error).__name__}
    if not result.results:
        return {"error": "no result"}
    found = result.results[0]
    pages, form = found.metadata.pages, found.metadata.format
    pdf = form.pdf if form else None
    return {
        "text": found.content[:most],
        "cut": len(found.content) > most,
        "title": found.metadata.title or "",
        "subject": found.metadata.subject or "",
        "authors": found.metadata.authors or [],
        "pages": pdf.page_count if pdf else pages.total_count if pages else None,
    }


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    while line := requests.readline():
        request = json.loads(line)
        body = json.dumps(asyncio.run(read(request, requests.read(request["size"])))).encode()
        answers.write(json.dumps({"size": len(body)}).encode() + b"\n" + body)
        answers.flush()


if __name__ == "__main__":
    limit_memory(int(sys.argv[1]))
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not mix with the answers
    answers.write(b"ready\n")
    answers.flush()
    serve(sys.stdin.buffer, answers)
