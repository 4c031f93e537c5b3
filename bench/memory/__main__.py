"""`python -m bench.memory`: recall by leg, for each installed embedder. About 30 s per embedder."""

from __future__ import annotations

import argparse
import asyncio

from apex_memory.config import Settings
from apex_memory.pipeline import open_embedder
from apex_memory.telemetry import configure_logging
from bench.engines import opened, running_engines, scrub_environment
from bench.memory.measure import FUSED, HALVES, LEGS, Outcome, ask_all, rows, table
from bench.memory.month import month_set, vendors
from bench.memory.month.report import misses
from bench.memory.month.report import report as month_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "embedder", nargs="*", help="as APEX_EMBEDDER; default: all that are installed"
    )
    parser.add_argument(
        "--chunk-chars", type=int, default=Settings.model_fields["chunk_chars"].default
    )
    parser.add_argument(
        "--month",
        action="store_true",
        help="the busy month of bench/memory/month instead of the sample world, with the default embedder",
    )
    parser.add_argument(
        "--misses", choices=HALVES, help="with --month: also list what a half does not find"
    )
    parser.add_argument(
        "--fused", action="store_true", help="with --month: only all legs together, not each alone"
    )
    arguments = parser.parse_args()
    scrub_environment()
    configure_logging("error", "console")
    if arguments.month:
        for name in arguments.embedder or [Settings.model_fields["embedder"].default]:
            asyncio.run(report_month(name, arguments))
        return
    embedders = arguments.embedder or ["e5-small", "minilm", "wordllama"]
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


async def report_month(name: str, arguments: argparse.Namespace) -> None:
    embedder = open_embedder(name)
    await embedder.close()
    async with running_engines(dimension=embedder.dimension) as engines:
        urls = {**await engines.fresh(), "embedder": name}
        tables = vendors().settings()
        chunk_chars = arguments.chunk_chars
        async with opened(urls, engines.folder, chunk_chars=chunk_chars, sources=tables) as app:
            asked = await month_set(app.sources)
            outcomes = await ask_all(app, asked, (FUSED,) if arguments.fused else (*LEGS, FUSED))
    print(f"{embedder.id}: {len(asked.events)} documents, {len(asked.questions)} questions")
    for line in month_report(outcomes):
        print(line)
    if arguments.misses:
        print()
        for line in misses(outcomes, arguments.misses):
            print(line)


if __name__ == "__main__":
    main()
