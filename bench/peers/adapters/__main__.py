"""`python -m bench.peers.adapters NAME FOLDER MODELS`: one peer as a process that takes commands, a JSON object a line."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from bench.peers.adapters.base import Adapter, Document


async def main(name: str, folder: Path, models: str) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    adapter: Adapter = importlib.import_module(f"bench.peers.adapters.{name}").ADAPTER()
    await adapter.open(folder, models)
    versions = {package: importlib.metadata.version(package) for package in adapter.packages}
    _send(out, {"ready": versions})
    while line := await asyncio.to_thread(sys.stdin.readline):
        began = time.perf_counter()
        try:
            answer = await _answer(adapter, json.loads(line), out)
        except Exception as error:  # noqa: BLE001 -- the driver reports it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        _send(out, {**answer, "seconds": time.perf_counter() - began})
    await adapter.close()


async def _answer(adapter: Adapter, command: dict[str, Any], out: TextIO) -> dict[str, Any]:
    match command["do"]:
        case "load":
            documents = [Document(**fields) for fields in command["documents"]]
            await adapter.load(documents, lambda key: _send(out, {"acknowledged": key}))
            return {}
        case "search":
            return {"keys": list(await adapter.search(command["question"]))}
        case "records":
            return {"records": dict(await adapter.records())}
        case "progress":
            progress = await adapter.progress()
            return {"progress": None if progress is None else dict(progress)}
        case "resume":
            await adapter.resume()
            return {}
        case unknown:
            raise ValueError(unknown)


def _send(out: TextIO, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
