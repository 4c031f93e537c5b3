"""HTML and Markdown without their images, and HTML as plain text."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.markup import plain_text, without_image_links, without_images
from apex_memory.model import File
from apex_memory.pipeline.file_limits import ReaderLimits
from apex_memory.pipeline.reader import FileReader
from apex_memory.sources.payloads import plain_text as source_text

REMOTE = "https://tracker.example/pixel.png?to=ops"
DATA = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 40).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader() -> AsyncIterator[FileReader]:
    reader = FileReader(ReaderLimits(characters=20_000), processes=1)
    yield reader
    await reader.close()


async def text_of(reader: FileReader, data: str, name: str = "page.html") -> str:
    file = File(name, "application/octet-stream", data.encode())
    return (await reader.read_file(file)).parsed.text


@pytest.mark.parametrize("url", [REMOTE, DATA, f" {DATA}", "//tracker.example/p.png", "cid:part1"])
@pytest.mark.parametrize(
    "image",
    [
        '<img alt="seal photo" src="URL">',
        "<IMG SRC='URL' ALT='seal photo'/>",
        '<img src=URL alt="seal photo" title="URL">',
        '<img data-x="a>b" src="URL" srcset="URL 2x" alt="seal photo">',
        '<img alt="seal photo" src="URL"',
        '<image src="URL" alt="seal photo">',
        '<input type="image" src="URL" alt="seal photo">',
        '<picture><source srcset="URL"><img src="URL" alt="seal photo"></picture>',
        '<a href="https://ok.example/"><img src="URL" alt="seal photo"></a>',
        '<table><tr><td><img src="URL" alt="seal photo"></td></tr></table>',
        '<video poster="URL" src="URL">seal photo</video>',
        '<object data="URL">seal photo</object>',
        '<iframe src="URL"></iframe>seal photo',
        '<svg width="9"><title>seal photo</title><image href="URL"/></svg>',
        '<a href="URL">seal photo</a>',
        "<p>seal photo ![hidden](URL)</p>",
        '<p style="background:url(URL)" background="URL">seal photo</p>',
    ],
)  # fmt: skip
async def test_f20_w10_an_image_is_its_alternative_text(
    reader: FileReader, image: str, url: str
) -> None:
    if image.startswith('<a href="URL') and not url.strip().startswith("data:"):
        return  # links stay
    url = url.strip() if "src=URL" in image or "hidden" in image else url
    text = await text_of(reader, f"<p>head</p>{image.replace('URL', url)}<p>the tail</p>")
    assert "seal photo" in text
    if not image.endswith(
        '"'
    ):  # a tag that is not closed takes the next one with it, as in browsers
        assert "the tail" in text
    for trace in ("tracker.example", "base64", "data:", "cid:"):
        assert trace not in text


async def test_f20_text_after_a_large_image_is_kept(reader: FileReader) -> None:
    image = f'<img alt="photo" src="{DATA * 100}">'
    text = await text_of(reader, f"<p>head</p>{image}<p>signed at 14:05</p>")
    assert text.split() == ["head", "photo", "signed", "at", "14:05"]


async def test_f20_w10_images_in_mails_and_markdown(reader: FileReader) -> None:
    page = f'<p>head</p><img alt="photo" src="{REMOTE}"><a href="https://ok.example/7">order</a>'
    text = await text_of(reader, f"Content-Type: text/html\n\n{page}", "m.eml")
    assert "photo" in text
    assert "[order](https://ok.example/7)" in text, "links stay"
    assert "tracker" not in text
    note = f"# Note\n\n![photo]({REMOTE}) and <img src='{DATA}' alt='seal'> [order](https://ok.example/7)"
    for name, data in (("n.md", note), ("n.eml", f"Subject: x\n\n{note}")):
        text = await text_of(reader, data, name)
        assert "tracker" not in text
        assert "photo and" in text
        assert "[order](https://ok.example/7)" in text


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("a ![b](https://x.example/y.png) c", "a b c"),
        ("![b](<https://x.example/y z.png> 'title')", "b"),
        ('![b](https://x.example/y.png "a title")', "b"),
        ("![a [b] c](https://x.example/y_(1).png)", "a [b] c"),
        ("[![logo](https://x.example/y.png)](https://ok.example)", "[logo](https://ok.example)"),
        ("![](data:image/png;base64,AAAA)", ""),
        ("wow![sic] (see)", "wow![sic] (see)"),
        ("[link](https://ok.example)", "[link](https://ok.example)"),
    ],
)
def test_w10_images_of_markdown_become_their_text(markdown: str, text: str) -> None:
    assert without_image_links(markdown) == text


def test_markup_without_images_stays_as_it_is() -> None:
    page = '<a href="https://ok.example/?a=1>2">x</a><p title="<img">y</p><imgx src="a"><aside>z</aside>'
    assert without_images(page.replace('"<img"', '"q"')) == page.replace('"<img"', '"q"')


@given(st.text(alphabet="<>!=[]()\"'/ aimgltsrcv:-", max_size=200))
def test_no_text_is_too_odd(text: str) -> None:
    assert isinstance(without_images(text), str)
    assert isinstance(plain_text(text), str)
    assert isinstance(without_image_links(text), str)


def test_f20_sources_read_the_alternative_text_of_images() -> None:
    page = f'<p>head <img alt="seal &lt;7&gt; photo" src="{DATA}"><br>tail <img src="{REMOTE}"></p>'
    assert source_text(page) == "head seal <7> photo\ntail"


def test_cells_of_a_table_are_words_of_their_own() -> None:
    assert plain_text("<table><tr><td>PRO</td><td>223456789</td></tr></table>") == "PRO 223456789"


@pytest.mark.parametrize(
    "unit",
    ["<img ", '<img src="', "<img alt='", "<svg ", "<img a=", "<a href='data:", "<img = ", "<!--", "</td ", "![", "![a](", "![[a]",
     "![a]", '![a](x "', "![a](<", "![\\", "![a](x (", "![a](x(y)", "![a](  "],
)  # fmt: skip
def test_hostile_markup_takes_linear_time(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    start = time.process_time()
    without_images(text)
    plain_text(text)
    without_image_links(text)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("tag", ["section", "address", "dt", "dd", "pre", "header", "option"])
def test_blocks_are_on_lines_of_their_own(tag: str) -> None:
    assert plain_text(f"a<{tag}>b</{tag}><{tag} class=x>c</{tag}>d").split() == ["a", "b", "c", "d"]


def test_cells_without_end_tags_are_apart() -> None:
    assert plain_text("<table><tr><td>PRO<td>223456781<tr><th>BOL<td>88</table>").split() == [
        "PRO",
        "223456781",
        "BOL",
        "88",
    ]
