"""Builders of small real documents, as bytes, from the standard library alone: for tests and the demo."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from html import escape

_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
_OFFICE = "http://schemas.openxmlformats.org"
_RELATIONS = f"{_OFFICE}/officeDocument/2006/relationships"
_DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_XLSX_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

DOCX = _DOCX_TYPE
XLSX = _XLSX_TYPE
PDF = "application/pdf"


def pdf(*pages: str, title: str = "") -> bytes:
    """A PDF with one page a text; lines are set one under the other in Helvetica."""
    count = len(pages)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {count} /Kids [{' '.join(f'{5 + 2 * n} 0 R' for n in range(count))}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (" + _pdf_text(title) + b") >>",
    ]
    for n, page in enumerate(pages):
        lines = b" T* ".join(b"(" + _pdf_text(line) + b") Tj" for line in page.splitlines())
        stream = b"BT /F1 11 Tf 14 TL 54 740 Td " + lines + b" ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {6 + 2 * n} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    return pdf_file(objects)


def _pdf_text(text: str) -> bytes:
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return escaped.encode("cp1252", "replace")


def pdf_file(objects: Sequence[bytes]) -> bytes:
    """A PDF of these objects, numbered from 1, of which the first is the catalogue."""
    body = bytearray(b"%PDF-1.4\n")
    places = []
    for n, item in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (n, item)
    table = len(body)
    body += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    body += b"".join(b"%010d 00000 n \n" % place for place in places)
    body += b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\n" % (len(objects) + 1)
    return bytes(body + b"startxref\n%d\n%%%%EOF\n" % table)


def docx(*paragraphs: str, table: Sequence[Sequence[str]] = ()) -> bytes:
    """A Word document. A paragraph that starts with `# ` becomes a heading."""
    main = f'xmlns:w="{_OFFICE}/wordprocessingml/2006/main"'
    body = "".join(map(_docx_paragraph, paragraphs))
    if table:
        rows = "".join(
            f"<w:tr>{''.join(f'<w:tc>{_docx_paragraph(cell)}</w:tc>' for cell in row)}</w:tr>"
            for row in table
        )
        body += f"<w:tbl>{rows}</w:tbl>"
    heading = (
        '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>'
    )
    return _package(
        "word/document.xml",
        f"{_DOCX_TYPE}.main+xml",
        {
            "word/document.xml": f"<w:document {main}><w:body>{body}</w:body></w:document>",
            "word/styles.xml": f"<w:styles {main}>{heading}</w:styles>",
            "word/_rels/document.xml.rels": _relations({"styles": "styles.xml"}),
        },
    )


def _docx_paragraph(text: str) -> str:
    style = '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>' if text.startswith("# ") else ""
    words = escape(text.removeprefix("# "))
    return f'<w:p>{style}<w:r><w:t xml:space="preserve">{words}</w:t></w:r></w:p>'


def xlsx(rows: Sequence[Sequence[str | float]], *, sheet: str = "Sheet1") -> bytes:
    """A workbook of one sheet; numbers are numbers, all else is text."""
    main = f'xmlns="{_OFFICE}/spreadsheetml/2006/main"'
    body = "".join(
        f'<row r="{r}">{"".join(_xlsx_cell(cell, r, c) for c, cell in enumerate(row))}</row>'
        for r, row in enumerate(rows, start=1)
    )
    sheets = f'<sheets><sheet name="{escape(sheet)}" sheetId="1" r:id="rId1"/></sheets>'
    return _package(
        "xl/workbook.xml",
        f"{_XLSX_TYPE}.main+xml",
        {
            "xl/workbook.xml": f'<workbook {main} xmlns:r="{_RELATIONS}">{sheets}</workbook>',
            "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData>{body}</sheetData></worksheet>",
            "xl/_rels/workbook.xml.rels": _relations({"worksheet": "worksheets/sheet1.xml"}),
        },
    )


def _xlsx_cell(value: str | float, row: int, column: int) -> str:
    place = f"{chr(ord('A') + column)}{row}"
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    return f'<c r="{place}"><v>{value}</v></c>'


def _relations(targets: Mapping[str, str]) -> str:
    rows = "".join(
        f'<Relationship Id="rId{n}" Type="{_RELATIONS}/{kind}" Target="{target}"/>'
        for n, (kind, target) in enumerate(targets.items(), start=1)
    )
    return f'<Relationships xmlns="{_OFFICE}/package/2006/relationships">{rows}</Relationships>'


def _package(root: str, root_type: str, parts: Mapping[str, str]) -> bytes:
    types = (
        f'<Types xmlns="{_OFFICE}/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/{root}" ContentType="{root_type}"/></Types>'
    )
    written = {
        "[Content_Types].xml": types,
        "_rels/.rels": _relations({"officeDocument": root}),
        **parts,
    }
    return archive({name: (_XML + body).encode() for name, body in written.items()})


def archive(files: Mapping[str, bytes]) -> bytes:
    """A ZIP file, the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, body in files.items():
            target.writestr(
                zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), body, zipfile.ZIP_DEFLATED
            )
    return buffer.getvalue()


def mail(
    text: str,
    *,
    subject: str,
    sender: str = "Dana Ortiz <dana@northwind.example>",
    to: str = "Dispatch <dispatch@acme.example>",
    html: str = "",
    date: str = "Tue, 03 Mar 2026 09:15:00 -0600",
    attachments: Sequence[tuple[str, str, bytes]] = (),
) -> bytes:
    """An e-mail as it goes over the wire; attachments are (name, content type, bytes)."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Date"], message["Message-ID"] = date, "<20260303.1@northwind.example>"
    if text:
        message.set_content(text)
    if html:
        (message.add_alternative if text else message.set_content)(html, subtype="html")
    for name, content_type, data in attachments:
        main, _, sub = content_type.partition("/")
        message.add_attachment(data, maintype=main, subtype=sub, filename=name)
    return message.as_bytes()
