"""A drain whose code changed in a way that running workflows cannot follow: the replay test must notice."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from apex_memory.flows.drain.messages import DrainInput
    from apex_memory.flows.drain.workflow import Drain


@workflow.defn(name="Drain")
class HastyDrain(Drain):
    """Rests before it begins."""

    @workflow.init
    def __init__(self, input: DrainInput) -> None:
        super().__init__(input)

    @workflow.run
    async def run(self, input: DrainInput) -> None:
        # The change itself: a command that no history of the real workflow has.
        await workflow.sleep(timedelta(seconds=1))
        await super().run(input)
