"""Text encoders in ONNX, run by onnxruntime in this process: MiniLM, and any folder that describes its own.

Such a folder (`APEX_EMBEDDER=onnx:PATH`) holds `model.onnx`, `tokenizer.json` and `encoder.toml`:

    id = "e5-small-v2-int8-384"
    dimension = 384
    pooling = "mean"             # or "cls": the first token's vector
    query_prefix = "query: "     # empty, unless the model was trained with one
    passage_prefix = "passage: "
    max_tokens = 512
"""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from apex_memory.errors import Misconfigured
from apex_memory.model import Vectors
from apex_memory.pipeline.embed import unit_rows

MODEL, TOKENIZER, ENCODER = "model.onnx", "tokenizer.json", "encoder.toml"

_CHARS_A_TOKEN = 31  # no real text has tokens as long on average: what lies behind is cut anyway
_BATCH_TOKENS = 512  # measured with MiniLM: 8 texts of 60 tokens run fastest; more gain nothing
_ENCODE = 256  # texts tokenized at a time


class Encoder(BaseModel):
    """What a model needs to be run as it was trained. `id` names model, weights and dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")
    dimension: int = Field(gt=0)
    pooling: Literal["mean", "cls"] = "mean"
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = Field(256, gt=2)


class OnnxEmbedder:
    """Vectors from one model and its tokenizer.

    Texts run sorted by length in batches of about 512 tokens, each in a thread of its own call:
    the event loop stays free, and cancelling takes effect within one batch.
    """

    def __init__(self, encoder: Encoder, *, model: Path, tokenizer: Path, threads: int = 0) -> None:
        self.id = encoder.id
        self.dimension = encoder.dimension
        self._encoder = encoder
        self._tokenizer = _open_tokenizer(tokenizer, encoder.max_tokens)
        self._session = _open_session(model, threads)
        self._inputs = {one.name for one in self._session.get_inputs()}
        # A model of another dimension is found out now, not when the first event is embedded.
        width = self._run([self._ids([""])[0]]).shape[1]
        if width != encoder.dimension:
            raise Misconfigured(
                f"embedder: {model} gives vectors of {width}, not {encoder.dimension}",
                remedy=f"correct `dimension` in its {ENCODER}",
            )

    async def passages(self, texts: Sequence[str]) -> Vectors:
        return await self._vectors([self._encoder.passage_prefix + text for text in texts])

    async def query(self, text: str) -> Vectors:
        # Tokenized here: of one text that takes less time than handing it to a thread.
        ids = self._ids([self._encoder.query_prefix + text])
        row: Vectors = unit_rows(await asyncio.to_thread(self._run, ids))[0]
        return row

    async def close(self) -> None:
        return None

    async def _vectors(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        ids: list[list[int]] = []
        for start in range(0, len(texts), _ENCODE):
            ids += await asyncio.to_thread(self._ids, texts[start : start + _ENCODE])
        for batch in _batches([len(one) for one in ids]):
            rows[batch] = await asyncio.to_thread(self._run, [ids[n] for n in batch])
        return unit_rows(rows)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        most = self._encoder.max_tokens * _CHARS_A_TOKEN
        return [one.ids for one in self._tokenizer.encode_batch([text[:most] for text in texts])]

    def _run(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Pooled vectors, shape (len(ids), dimension), not yet of unit length."""
        longest = max(map(len, ids))
        tokens = np.zeros((len(ids), longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for n, one in enumerate(ids):
            tokens[n, : len(one)] = one
            mask[n, : len(one)] = 1
        feeds = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(tokens),
        }
        given = {name: value for name, value in feeds.items() if name in self._inputs}
        hidden: Vectors = self._session.run(None, given)[0]
        if self._encoder.pooling == "cls":
            return hidden[:, 0]
        weights = mask[..., None].astype(np.float32)
        means: Vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return means


def open_folder(folder: Path, *, threads: int = 0) -> OnnxEmbedder:
    """The encoder that a folder describes. Raises `Misconfigured` for one that lacks or garbles something."""
    for name in (MODEL, TOKENIZER, ENCODER):
        if not (folder / name).is_file():
            raise Misconfigured(
                f"embedder: {folder} holds no {name}",
                remedy=f"APEX_EMBEDDER=onnx:PATH needs a folder with {MODEL}, {TOKENIZER} and {ENCODER}",
            )
    try:
        encoder = Encoder.model_validate(tomllib.loads((folder / ENCODER).read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            wrong = error.errors(include_input=False, include_url=False)[0]
            first = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        raise Misconfigured(
            f"embedder: {folder / ENCODER}: {first}",
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
            f"embedder: {file} is no tokenizer ({str(error)[:200]})",
            remedy="take the `tokenizer.json` that came with the model",
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()  # the file has limits of its own, often lower than the model's
    tokenizer.enable_truncation(max_length=max_tokens)
    return tokenizer


def _open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin gain 1 % here and take a processor from the stores beside us.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 -- its errors share no class of their own
        raise Misconfigured(
            f"embedder: {file} cannot be loaded ({type(error).__name__})",
            remedy="take a model exported to ONNX for text features (`last_hidden_state`)",
        ) from None


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indexes in batches of like length, each of at most `_BATCH_TOKENS` with its padding, or of one text."""
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[n] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
