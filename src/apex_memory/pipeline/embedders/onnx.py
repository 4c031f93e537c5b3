"""Text encoders in ONNX, run by onnxruntime in this process: MiniLM, or a model in a folder.

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
from apex_memory.pipeline.embedders.base import unit_rows

MODEL, TOKENIZER, ENCODER = "model.onnx", "tokenizer.json", "encoder.toml"

_CHARS_PER_TOKEN = (
    31  # no real text has longer tokens on average; the tokenizer cuts the rest anyway
)
_BATCH_TOKENS = 512  # measured with MiniLM: 8 texts of 60 tokens run fastest
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

    Texts run sorted by length in batches of about 512 tokens. Each batch is a call in a thread of its
    own, so the event loop stays free, and cancelling takes effect within one batch.
    """

    def __init__(self, encoder: Encoder, *, model: Path, tokenizer: Path, threads: int = 0) -> None:
        self.id = encoder.id
        self.dimension = encoder.dimension
        self._encoder = encoder
        self._tokenizer = _open_tokenizer(tokenizer, encoder.max_tokens)
        self._session = _open_session(model, threads)
        self._inputs = {tensor.name for tensor in self._session.get_inputs()}
        # Detect a model of another dimension now, not with the first event.
        width = self._run([self._ids([""])[0]]).shape[1]
        if width != encoder.dimension:
            raise Misconfigured(
                f"embedder: {model} gives vectors of {width}, not {encoder.dimension}",
                remedy=f"correct `dimension` in its {ENCODER}",
            )

    async def passages(self, texts: Sequence[str]) -> Vectors:
        return await self._vectors([self._encoder.passage_prefix + text for text in texts])

    async def query(self, text: str) -> Vectors:
        # Tokenized here: for one text that takes less time than passing it to a thread.
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
        for batch in _batches([len(text_ids) for text_ids in ids]):
            rows[batch] = await asyncio.to_thread(self._run, [ids[n] for n in batch])
        return unit_rows(rows)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        most = self._encoder.max_tokens * _CHARS_PER_TOKEN
        encodings = self._tokenizer.encode_batch([text[:most] for text in texts])
        return [encoding.ids for encoding in encodings]

    def _run(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Return pooled vectors, shape (len(ids), dimension), not yet of unit length."""
        longest = max(map(len, ids))
        tokens = np.zeros((len(ids), longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for n, text_ids in enumerate(ids):
            tokens[n, : len(text_ids)] = text_ids
            mask[n, : len(text_ids)] = 1
        feeds = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(tokens),
        }
        accepted = {name: value for name, value in feeds.items() if name in self._inputs}
        hidden: Vectors = self._session.run(None, accepted)[0]
        if self._encoder.pooling == "cls":
            return hidden[:, 0]
        weights = mask[..., None].astype(np.float32)
        means: Vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return means


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


def _open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning idle threads gain 1 % here, and take a processor from the stores on the same machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 -- its errors share no class of their own
        raise Misconfigured(
            f"embedder: {file} cannot be loaded ({type(error).__name__})",
            remedy="take a model exported to ONNX for text features (`last_hidden_state`)",
        ) from None


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield indexes in batches of similar length. With its padding a batch has `_BATCH_TOKENS` at most, or it is one text."""
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[n] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
