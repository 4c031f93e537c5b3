"""`python -m bench.peers.model_server PORT`: the models that all systems share, in OpenAI's form, on loopback.

Embeddings come from Apex's default model. A model name that ends with `query` embeds questions, any other passages, for
the model was trained with different prefixes. Chat is answered by `stub_llm`. `/counts` returns and resets what was used.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from apex_memory.config import Settings
from apex_memory.engines.base import HOST
from apex_memory.pipeline import open_embedder
from bench.peers.stub_llm import answer

EMBEDDER = Settings.model_fields["embedder"].default
counts: Counter[str] = Counter()


def application() -> Starlette:
    embedder = open_embedder(EMBEDDER)

    async def embeddings(request: Request) -> Response:
        body = orjson.loads(await request.body())
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        counts["embedded texts"] += len(texts)
        if body.get("model", "").endswith("query"):
            rows = await asyncio.gather(*(embedder.query(text) for text in texts))
        else:
            rows = list(await embedder.passages(texts))
        encode = _base64 if body.get("encoding_format") == "base64" else _floats
        data = [
            {"object": "embedding", "index": n, "embedding": encode(row)}
            for n, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return _json(
            {"object": "list", "data": data, "model": body.get("model", ""), "usage": usage}
        )

    async def chat(request: Request) -> Response:
        body = orjson.loads(await request.body())
        counts["chat calls"] += 1
        counts["chat characters"] += sum(len(str(turn["content"])) for turn in body["messages"])
        text = answer(body["messages"], body.get("response_format"))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return _json(
            {
                "id": f"stub-{counts['chat calls']}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body.get("model", "stub"),
                "choices": [choice],
                "usage": usage,
            }
        )

    async def used(request: Request) -> Response:
        seen = dict(counts)
        counts.clear()
        return _json(seen)

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/counts", used),
        ]
    )


def _floats(row: Any) -> list[float]:
    return [float(value) for value in row]


def _base64(row: Any) -> str:
    return base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode()


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(application(), host=HOST, port=int(sys.argv[1]), log_level="error")
