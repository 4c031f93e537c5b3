"""Office files, PDF and HTML to text with xberg. Runs in the reader's process only: native code may crash or never end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

import xberg

from apex_memory.errors import Rejected
from apex_memory.pipeline.file_limits import ReaderLimits

Style = Literal["plain", "markdown"]


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """What xberg reads in a file. `characters` is the length of its text before it was cut to the limit."""

    text: str
    characters: int
    title: str
    subject: str
    authors: list[str]
    pages: int | None


def read_office_file(
    data: bytes, *, media_type: str, name: str, style: Style, limits: ReaderLimits
) -> ParsedFile:
    """Return the text of a file. Raises `Rejected`, with `name` for its format, for one that xberg cannot read."""
    request = xberg.ExtractInput(kind="bytes", bytes=data, mime_type=media_type)
    try:
        result = asyncio.run(xberg.extract(request, _configuration(style, limits)))
    except Exception as error:  # noqa: BLE001 -- native errors are plain RuntimeErrors
        # Their text may quote the file, so only its start is kept.
        raise _unreadable(name, str(error).partition(":")[0][:60] or type(error).__name__) from None
    if not result.results:
        raise _unreadable(name, "no result")
    document = result.results[0]
    metadata = document.metadata
    pdf = metadata.format.pdf if metadata.format else None
    pages = metadata.pages.total_count if metadata.pages else None
    return ParsedFile(
        text=document.content[: limits.characters],
        characters=len(document.content),
        title=metadata.title or "",
        subject=metadata.subject or "",
        authors=metadata.authors or [],
        pages=pdf.page_count if pdf else pages,
    )


def _unreadable(name: str, reason: str) -> Rejected:
    return Rejected(
        f"the file cannot be read as {name} ({reason})",
        remedy="see that it opens in its own program and is not protected by a password",
    )


def _configuration(style: Style, limits: ReaderLimits) -> xberg.ExtractionConfig:
    return xberg.ExtractionConfig(
        use_cache=False,
        disable_ocr=True,
        enable_quality_processing=False,
        output_format=style,
        escape_markdown=False,
        max_archive_depth=0,
        html_options=xberg.ConversionOptions(
            extract_metadata=False,
            # Whole pages are forms, and what stands above a page's body may be its number.
            preprocessing=xberg.PreprocessingOptions(remove_forms=False, remove_navigation=False),
        ),
        pdf_options=xberg.PdfConfig(extract_annotations=True),  # what people type onto a page
        concurrency=xberg.ConcurrencyConfig(max_threads=1),
        security_limits=xberg.SecurityLimits(
            max_archive_size=limits.unpacked_bytes,
            max_compression_ratio=limits.compression_ratio,
            max_files_in_archive=20 * limits.max_files,
            max_content_size=10 * limits.characters,
            max_table_cells=1_000_000,
        ),
    )
