"""The models that the package contains: one table. docs/reference/models.md says what each costs and how to choose.

All are run by `onnx.py`; a model in a folder of your own needs no entry here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from apex_memory.errors import Misconfigured
from apex_memory.pipeline.embedders.onnx import Encoder, OnnxEmbedder

FOLDER = Path(__file__).parent / "models"

# Both models have BERT's uncased English vocabulary.
TOKENIZER = "bert-uncased-tokenizer.json"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model file of this package, with the settings that it was trained with."""

    file: str
    sha256: str
    encoder: Encoder


MODELS = {
    "e5-small": BundledModel(
        "e5-small-v2-int8.onnx",
        "7d9092cb25f2bd1c023b7e8d2aa459044a02030ac880e5a59fdaf27af69f1ded",
        Encoder(
            id="e5-small-v2-int8-384",
            dimension=384,
            query_prefix="query: ",
            passage_prefix="passage: ",
            max_tokens=512,
        ),
    ),
    "minilm": BundledModel(
        "minilm-l6-v2-int8.onnx",
        "afdb6f1a0e45b715d0bb9b11772f032c399babd23bfc31fed1c170afc848bdb1",
        # 256 tokens is the length that the model was trained for.
        Encoder(id="minilm-l6-v2-int8-384", dimension=384, max_tokens=256),
    ),
}
"""The bundled models by the name that `APEX_EMBEDDER` gives them."""


def open_model(name: str, *, threads: int = 0) -> OnnxEmbedder:
    """Open a bundled model. Raises `Misconfigured` if a file is not the one that this version was built for."""
    model = MODELS[name]
    return OnnxEmbedder(
        model.encoder,
        model=_verified(model.file, model.sha256),
        tokenizer=_verified(TOKENIZER, TOKENIZER_SHA256),
        threads=threads,
    )


def _verified(name: str, sha256: str) -> Path:
    file = FOLDER / name
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise Misconfigured(
            f"embedder: {name} is missing, or is not the file that this version was built for",
            remedy="install apex-memory again",
        )
    return file
