"""An agent's memory in 30 lines: it recalls what it knows before it answers, and remembers what it learns.

Run it beside a stack (`apex up`): python examples/agent_memory.py
"""

from __future__ import annotations

from apex_memory.client import Apex


def recall(memory: Apex, question: str, *, limit: int = 3) -> str:
    """Return the passages that concern a question, each with its source and time: quotations for a prompt."""
    answer = memory.search(question, limit=limit, passages_per_document=1)
    if answer.unknown:
        return f"Nothing is known about {', '.join(answer.unknown)}."
    lines = [f"- {hit.occurred_at:%Y-%m-%d}, {hit.source}: {hit.excerpt}" for hit in answer.hits]
    if answer.degraded:
        lines.append(f"(without {', '.join(answer.degraded)}: something may be missing)")
    return "\n".join(lines) or "Nothing is known."


def main() -> None:
    """Remember three facts, correct one of them, and recall."""
    with Apex() as memory:
        memory.remember("Harbor Foods takes deliveries from 08:00.", key="harbor-foods/hours")
        memory.remember("Ruth Moreno drives truck T-210.", key="drivers/moreno")
        # The same key: a new version, which takes the place of the first one.
        memory.remember(
            "Harbor Foods takes deliveries from 06:00.", key="harbor-foods/hours", wait=30
        )
        for question in ("When does Harbor Foods take deliveries?", "Who drives T-210?"):
            print(question, recall(memory, question, limit=1), sep="\n")


if __name__ == "__main__":
    main()
