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

from apex_memory.config import Settings
from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unavailable
from apex_memory.pipeline.embedders import bundled, selection
from apex_memory.pipeline.embedders.base import Embedder, unit_rows
from apex_memory.pipeline.embedders.hashing import HashingEmbedder
from apex_memory.pipeline.embedders.selection import open_embedder
from apex_memory.saga.breaker import CircuitOpen
from apex_memory.saga.retries import ResilientStore

DIMENSION = 256
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


def vectors(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Return the response of a correct server, the last text first: `index` holds the order."""
    rows = asyncio.run(HashingEmbedder(DIMENSION).passages(request["input"])) * 3
    data = [{"index": n, "embedding": row.tolist()} for n, row in enumerate(rows)]
    return 200, {}, json.dumps({"data": data[::-1]}).encode()


class Server(ThreadingHTTPServer):
    """An embedding server whose response a test may change. It keeps the requests."""

    daemon_threads = True
    answer: Answer = staticmethod(vectors)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, dict(self.headers.items()), body))
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
        ("model.onnx", bundled.FOLDER / bundled.MODELS["minilm"].file),
        ("tokenizer.json", bundled.FOLDER / bundled.TOKENIZER),
    ):
        (folder / name).symlink_to(file)
    lines = (f"{name} = {value}" for name, value in (ENCODER | fields).items())
    (folder / "encoder.toml").write_text("\n".join(lines))
    return folder


@pytest_asyncio.fixture(
    params=["hashing", "e5-small", "minilm", "onnx", "wordllama", "server"], loop_scope="session"
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
        [alone] = await embedder.passages([texts[n]])
        assert np.allclose(rows[n], alone, atol=1e-5)


async def test_like_is_near_like(embedder: Embedder) -> None:
    question = await embedder.query("when does the truck reach Columbus")
    near, far = await embedder.passages(
        ["the truck reached Columbus at noon", "wire the payment to the bank"]
    )
    # Cosines of e5 lie between 0.7 and 1, those of the others between 0 and 1.
    assert question @ near > question @ far + (0.05 if "e5" in embedder.id else 0.1)


async def test_the_server_gets_requests_as_openai_does(server: Server) -> None:
    opened = open_embedder(
        f"{server.url}/", model="Org/Small-v2", dimension=DIMENSION, key="secret"
    )
    await opened.passages([f"text {n}" for n in range(300)])
    await opened.close()
    assert opened.id == f"org-small-v2-{DIMENSION}"
    assert sorted(len(body["input"]) for _, _, body in server.requests) == [12] + [32] * 9
    path, headers, body = server.requests[0]
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


@pytest.mark.parametrize("name", [bundled.MODELS["minilm"].file, bundled.TOKENIZER])
def test_a_changed_model_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for file in bundled.FOLDER.iterdir():
        (tmp_path / file.name).symlink_to(file)
    changed = tmp_path / name
    changed.unlink()
    changed.write_bytes((bundled.FOLDER / name).read_bytes() + b" ")
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    with pytest.raises(Misconfigured, match=name):
        open_embedder("minilm")


def test_the_names_of_bundled_models_are_those_of_the_table() -> None:
    assert set(selection.BUNDLED) == set(bundled.MODELS)


def test_the_default_is_a_bundled_model() -> None:
    assert Settings.model_fields["embedder"].default in bundled.MODELS


def test_the_notice_names_every_file_with_its_checksum() -> None:
    notice = (bundled.FOLDER / "NOTICE").read_text()
    for model in bundled.MODELS.values():
        assert model.file in notice and model.sha256 in notice
    assert bundled.TOKENIZER in notice and bundled.TOKENIZER_SHA256 in notice


def test_rows_without_length_become_even() -> None:
    rows = unit_rows(np.array([[0, 0, 0, 0], [3, 0, 4, 0]], dtype=np.float32))
    assert rows.tolist() == [[0.5, 0.5, 0.5, 0.5], [np.float32(0.6), 0, np.float32(0.8), 0]]


@pytest.mark.parametrize(
    ("name", "near", "far"),
    # From the same weights in float32, activations included, computed by a BERT of 50 lines in numpy.
    [("e5-small", 0.923, 0.720), ("minilm", 0.752, -0.047)],
)
async def test_int8_vectors_are_those_of_float32(name: str, near: float, far: float) -> None:
    """The example of e5's model card. Wrong pooling or prefixes move the first pair of e5 by more than .01."""
    opened = open_embedder(name, threads=1)
    question = await opened.query("how much protein should a female eat")
    rows = await opened.passages(
        [
            "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. But, as you can see from this chart, you'll need to increase that if you're expecting or training for a marathon. Check out the chart below to see how much protein you should be eating each day.",
            "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. : 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments.",
        ]
    )
    await opened.close()
    assert rows @ question == pytest.approx([near, far], abs=0.015)


async def test_a_question_does_not_wait_for_passages() -> None:
    opened = open_embedder("minilm", threads=1)
    load = asyncio.create_task(opened.passages(["the truck waits in Columbus " * 40] * 64))
    for _ in range(3):
        await opened.query("where is it")
    assert not load.done()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    await opened.close()


async def test_urgent_passages_go_before_those_that_wait() -> None:
    opened = open_embedder("minilm", threads=1)
    load = asyncio.create_task(opened.passages(["the truck waits in Columbus " * 40] * 64))
    await opened.query("until the load has begun")
    await opened.passages(["the truck broke down"], urgent=True)
    assert not load.done()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert (await opened.passages(["and on it goes"])).shape == (1, 384)
    await opened.close()


async def test_minilm_reads_past_the_tokenizer_files_own_limit() -> None:
    opened = open_embedder("minilm", threads=1)
    start = "the truck waits " * 60  # about 180 tokens: the file alone would stop at 128
    first, second = await opened.passages([start + "in Columbus", start + "for the bank's wire"])
    assert not np.array_equal(first, second)


async def test_minilm_is_an_encoder_like_any_other(tmp_path: Path) -> None:
    text = ["Load SHP-100045 waits in Columbus"]
    own = open_embedder(f"onnx:{encoder_folder(tmp_path / 'own')}", threads=1)
    assert own.id == "own-384"
    same = await open_embedder("minilm", threads=1).passages(text)
    assert np.allclose(await own.passages(text), same, atol=1e-5)


async def test_prefixes_and_pooling_are_the_folders(tmp_path: Path) -> None:
    fields = {"query_prefix": '"query: "', "passage_prefix": '"passage: "'}
    plain, prefixed, cls = (
        open_embedder(f"onnx:{encoder_folder(tmp_path / name, **settings)}", threads=1)
        for name, settings in (("plain", {}), ("prefixed", fields), ("cls", {"pooling": '"cls"'}))
    )
    question = await prefixed.query("where is it")
    assert np.allclose(question, await plain.query("query: where is it"), atol=1e-5)
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


async def test_a_server_gets_several_requests_at_a_time_and_no_more(server: Server) -> None:
    counting = threading.Condition()
    open_requests, most = 0, 0

    def slow(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        nonlocal open_requests, most
        with counting:
            open_requests += 1
            most = max(most, open_requests)
            counting.notify_all()
            counting.wait_for(lambda: most == 8, timeout=20)  # never, with fewer at a time
        answer = vectors(request)
        with counting:
            open_requests -= 1
        return answer

    server.answer = slow
    opened = open_embedder(server.url, dimension=DIMENSION)
    texts = [f"text {n}" for n in range(32 * 20)]
    rows = await opened.passages(texts)
    await opened.close()
    assert most == 8
    assert np.allclose(rows, await HashingEmbedder(DIMENSION).passages(texts), atol=1e-5)


async def test_a_server_that_takes_fewer_texts_gets_fewer(server: Server) -> None:
    def small(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return vectors(request) if len(request["input"]) <= 5 else plain(422)(request)

    server.answer = small
    opened = open_embedder(server.url, dimension=DIMENSION)
    texts = [f"text {n}" for n in range(40)]
    rows = await opened.passages(texts)
    await opened.close()
    assert np.allclose(rows, await HashingEmbedder(DIMENSION).passages(texts), atol=1e-5)


async def test_long_texts_are_not_sent_together(server: Server) -> None:
    opened = open_embedder(server.url, dimension=DIMENSION)
    await opened.passages(["word " * 6_000] * 5)
    await opened.close()
    assert sorted(len(body["input"]) for _, _, body in server.requests) == [1, 2, 2]


async def test_passages_run_in_the_guard_and_questions_do_not(server: Server) -> None:
    """The guard of the application: retries, then a breaker that stops all calls."""
    settings = Settings(retry_seconds=0.01, retry_attempts=3, breaker_failures=5)
    failures = iter([500, 503])

    def failing_twice(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        status = next(failures, None)
        return plain(status)(request) if status else vectors(request)

    server.answer = failing_twice
    guard = ResilientStore("embedder", settings).call
    opened = open_embedder(server.url, dimension=DIMENSION, guard=guard)
    assert (await opened.passages(["x"])).shape == (1, DIMENSION)
    assert len(server.requests) == 3
    server.answer = plain(500)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await opened.passages(["x"])
    requests = len(server.requests)
    assert requests == 3 + 5, "the breaker opens after five failures in a row"
    with pytest.raises(CircuitOpen):
        await opened.passages(["x"])
    assert len(server.requests) == requests
    with pytest.raises(Unavailable):
        await opened.query("x")
    assert len(server.requests) == requests + 1
    await opened.close()
