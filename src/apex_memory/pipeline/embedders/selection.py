"""Which embedder the settings name. Each is imported only where it is chosen: models are large."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apex_memory.errors import Misconfigured, require_extra
from apex_memory.pipeline.embedders.base import Embedder
from apex_memory.pipeline.embedders.hashing import HashingEmbedder

if TYPE_CHECKING:
    from apex_memory.pipeline.embedders.server import Guard

BUNDLED = ("e5-small", "minilm")
"""The names in `bundled.MODELS`, which imports ONNX Runtime."""

_SERVER = "set APEX_EMBEDDER to the URL of an embedding server (`http://host/v1`)"


def open_embedder(
    spec: str,
    *,
    model: str = "",
    dimension: int = 0,
    key: str = "",
    threads: int = 0,
    guard: Guard | None = None,
) -> Embedder:
    """Return the embedder that the settings name: `e5-small`, `minilm`, `wordllama`, `onnx:FOLDER`, `hashing`, or a server's URL.

    `threads` applies to local models, 0 means the number of processors; `model`, `dimension` and `key`
    apply to a server, and `guard` runs each of its requests for passages. Loading a model takes about 0.3 s. Raises `Misconfigured`.
    """
    if spec == "hashing":
        return HashingEmbedder()
    if spec in BUNDLED:
        _require_onnx()
        from apex_memory.pipeline.embedders.bundled import open_model

        return open_model(spec, threads=threads)
    if spec.startswith("onnx:"):
        _require_onnx()
        from apex_memory.pipeline.embedders.onnx import open_folder

        return open_folder(Path(spec.removeprefix("onnx:")).expanduser(), threads=threads)
    if spec == "wordllama":
        require_extra("wordllama", extra="wordllama", feature="embedder", otherwise=_SERVER)
        from apex_memory.pipeline.embedders.wordllama import WordLlamaEmbedder

        return WordLlamaEmbedder()
    if spec.startswith(("http://", "https://")):
        from apex_memory.pipeline.embedders.server import ServerEmbedder, unguarded

        return ServerEmbedder(
            spec, model=model, dimension=dimension, key=key, guard=guard or unguarded
        )
    raise Misconfigured(
        f"embedder: {spec!r} is unknown",
        remedy="set APEX_EMBEDDER to `e5-small`, `minilm`, `wordllama`, `onnx:FOLDER`, `hashing`, or the URL of a server (`http://host/v1`)",
    )


def _require_onnx() -> None:
    for package in ("onnxruntime", "tokenizers"):
        require_extra(package, extra="onnx", feature="embedder", otherwise=_SERVER)
