"""`python -m bench.models [EMBEDDER …]`: what each local model costs on this machine.

Milliseconds of processor time a text, by its length in words, and how long a question takes while passages are
embedded in the same process. All models take turns in one run, since the speed of a machine varies.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence

from apex_memory.pipeline import Embedder, open_embedder
from bench.corpus import Corpus
from bench.rows import percentile

WORDS = (6, 20, 60)
"""A turn of a chat, a short passage, a passage of freight mail: 18, 55 and 165 tokens, since codes take several."""
TEXTS = 12
TURNS = 3
QUESTIONS = 15


async def main(names: Sequence[str]) -> None:
    embedders = {name: open_embedder(name) for name in names}
    lines = {name: [embedder.id] for name, embedder in embedders.items()}
    for words in WORDS:
        texts = _texts(words)
        best = dict.fromkeys(names, float("inf"))
        for _ in range(TURNS):
            for name, embedder in embedders.items():
                best[name] = min(best[name], await _cpu_ms(embedder, texts))
        for name, value in best.items():
            lines[name].append(f"{value:.1f}")
    for name, embedder in embedders.items():
        alone = await _question_ms(embedder)
        load = asyncio.create_task(embedder.passages(_texts(WORDS[-1]) * 100))
        beside = await _question_ms(embedder)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        lines[name].append(f"{alone:.1f}")
        lines[name].append(f"{beside:.1f}")
        await embedder.close()
    head = ["embedder", *(f"CPU ms, {words} words" for words in WORDS)]
    head += ["question p50 ms", "beside passages"]
    for line in (head, ["---"] * len(head), *lines.values()):
        print(f"| {' | '.join(line)} |")


def _texts(words: int) -> list[str]:
    corpus, chance = Corpus(), random.Random(1)
    vocabulary = " ".join(corpus.text(n) for n in range(20)).split()
    return [" ".join(chance.choices(vocabulary, k=words)) for _ in range(TEXTS)]


async def _cpu_ms(embedder: Embedder, texts: Sequence[str]) -> float:
    began = time.process_time()
    await embedder.passages(texts)
    return 1000 * (time.process_time() - began) / len(texts)


async def _question_ms(embedder: Embedder) -> float:
    seconds = []
    for n in range(QUESTIONS):
        began = time.perf_counter()
        await embedder.query(f"which carrier reported load {n} late on Tuesday")
        seconds.append(time.perf_counter() - began)
    return 1000 * percentile(seconds, 0.5)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["e5-small", "minilm", "wordllama"]))
