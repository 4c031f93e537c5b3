"""Text encoders in ONNX, run by onnxruntime in this process: a bundled model, or one in a folder.

Such a folder (`APEX_EMBEDDER=onnx:PATH`) holds `model.onnx`, `tokenizer.json` and `encoder.toml`:

    id = "bge-small-en-384"
    dimension = 384
    pooling = "cls"              # the first token's vector, or "mean"
    query_prefix = "Represent this sentence for searching relevant passages: "  # empty, unless the model was trained with one
    passage_prefix = ""
    max_tokens = 512
"""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from apex_memory.errors import Misconfigured
from apex_memory.model import Vectors
from apex_memory.pipeline.embedders.base import unit_rows
from apex_memory.pipeline.embedders.turns import Turns, each, slices_of

MODEL, TOKENIZER, ENCODER = "model.onnx", "tokenizer.json", "encoder.toml"

_CHARS_PER_TOKEN = (
    31  # no real text has longer tokens on average; the tokenizer cuts the rest anyway
)
# Texts of so many tokens run in one turn: an urgent text waits so long at most, 0.1 to 0.3 s on one processor.
_TURN_TOKENS = 512
_ENCODE = 256  # texts tokenized at a time


class Encoder(BaseModel):
    """The settings with which a model was trained. `id` names model, weights and dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")
    dimension: int = Field(gt=0)
    pooling: Literal["mean", "cls"] = "mean"
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = Field(256, gt=2)


class OnnxEmbedder:
    """Vectors from one model and its tokenizer.

    Each text runs by itself: int8 models scale their activations over a whole batch, so a text's vector
    would depend on the texts beside it (measured: cosine 0.99). A run takes one processor, and as many
    run at a time as there are `threads`, in threads of their own, so that the event loop stays free.
    Urgent passages take the next turn, and questions have a thread of their own and wait for no passage.
    """

    def __init__(self, encoder: Encoder, *, model: Path, tokenizer: Path, threads: int = 0) -> None:
        self.id = encoder.id
        self.dimension = encoder.dimension
        self._encoder = encoder
        self._tokenizer = _open_tokenizer(tokenizer, encoder.max_tokens)
        self._session = _open_session(model)
        places = threads or os.cpu_count() or 1
        self._turns = Turns(places)
        self._passage_threads = ThreadPoolExecutor(places, "embed-passages")
        self._question_thread = ThreadPoolExecutor(1, "embed-question")
        self._inputs = {tensor.name for tensor in self._session.get_inputs()}
        # Detect a model of another dimension now, not with the first event.
        width = self._run(self._ids([""])).shape[1]
        if width != encoder.dimension:
            raise Misconfigured(
                f"embedder: {model} gives vectors of {width}, not {encoder.dimension}",
                remedy=f"correct `dimension` in its {ENCODER}",
            )

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        ids: list[list[int]] = []
        for start in range(0, len(texts), _ENCODE):
            part = [self._encoder.passage_prefix + text for text in texts[start : start + _ENCODE]]
            ids += await asyncio.to_thread(self._ids, part)
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        loop = asyncio.get_running_loop()

        async def run(part: slice) -> None:
            async with self._turns.turn(urgent=urgent):
                rows[part] = await loop.run_in_executor(self._passage_threads, self._run, ids[part])

        slices = slices_of(
            [len(text_ids) for text_ids in ids], most=_TURN_TOKENS, most_texts=_TURN_TOKENS
        )
        await each(slices, run, at_a_time=self._turns.places)
        return unit_rows(rows)

    async def query(self, text: str) -> Vectors:
        # Tokenized here: for one text that takes less time than passing it to a thread.
        ids = self._ids([self._encoder.query_prefix + text])
        loop = asyncio.get_running_loop()
        row: Vectors = unit_rows(await loop.run_in_executor(self._question_thread, self._run, ids))[
            0
        ]
        return row

    async def close(self) -> None:
        for threads in (self._passage_threads, self._question_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        most = self._encoder.max_tokens * _CHARS_PER_TOKEN
        encodings = self._tokenizer.encode_batch([text[:most] for text in texts])
        return [encoding.ids for encoding in encodings]

    def _run(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Return pooled vectors, shape (len(ids), dimension), not yet of unit length."""
        return np.stack([self._run_text(text_ids) for text_ids in ids])

    def _run_text(self, ids: Sequence[int]) -> Vectors:
        tokens = np.array([ids], dtype=np.int64)
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "token_type_ids": np.zeros_like(tokens),
        }
        accepted = {name: value for name, value in feeds.items() if name in self._inputs}
        hidden: Vectors = self._session.run(None, accepted)[0][0]
        vector: Vectors = hidden[0] if self._encoder.pooling == "cls" else hidden.mean(axis=0)
        return vector


def open_folder(folder: Path, *, threads: int = 0) -> OnnxEmbedder:
    """Open the encoder in a folder. Raises `Misconfigured` if a file is missing or wrong."""
    for name in (MODEL, TOKENIZER, ENCODER):
        if not (folder / name).is_file():
            raise Misconfigured(
                f"embedder: {folder} has no {name}",
                remedy=f"APEX_EMBEDDER=onnx:PATH needs a folder with {MODEL}, {TOKENIZER} and {ENCODER}",
            )
    try:
        encoder = Encoder.model_validate(tomllib.loads((folder / ENCODER).read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            first = error.errors(include_input=False, include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise Misconfigured(
            f"embedder: {folder / ENCODER}: {reason}",
            remedy="it needs `id` and `dimension`, and may have `pooling`, `query_prefix`, `passage_prefix`, `max_tokens`",
        ) from None
    return OnnxEmbedder(
        encoder, model=folder / MODEL, tokenizer=folder / TOKENIZER, threads=threads
    )


def _open_tokenizer(file: Path, max_tokens: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 -- the library raises nothing narrower
        raise Misconfigured(
            f"embedder: {file} is not a tokenizer ({str(error)[:200]})",
            remedy="take the `tokenizer.json` that came with the model",
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()  # the file has its own limit, often lower than the model's
    tokenizer.enable_truncation(max_length=max_tokens)
    return tokenizer


def _open_session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the texts are what runs in parallel
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 -- its errors share no class of their own
        raise Misconfigured(
            f"embedder: {file} cannot be loaded ({type(error).__name__})",
            remedy="take a model exported to ONNX for text features (`last_hidden_state`)",
        ) from None
