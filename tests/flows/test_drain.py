"""What a drain decides: when to look, how long a run is, what pauses it, what it survives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.common import SearchAttributeKey

from apex_memory.errors import Misconfigured, RetryLater, Unavailable
from apex_memory.flows.drain.workflow import Drain
from apex_memory.flows.temporal import errors
from tests.flows.conftest import Bench, bench_for
from tests.flows.payloads import readable
from tests.flows.scripted import Steps
from tests.waiting import until

OUTCOME = SearchAttributeKey.for_keyword("ApexOutcome")


async def details(handle: WorkflowHandle[Drain, None]) -> str:
    metadata = await handle.query("__temporal_workflow_metadata")
    return str(metadata.current_details)


async def outcome(client: Client, workflow: str, run: str) -> str | None:
    described = await client.get_workflow_handle(workflow, run_id=run).describe()
    return described.typed_search_attributes.get(OUTCOME)


async def test_wake_processes_everything_in_batches_and_looks_once_more(bench: Bench) -> None:
    bench.steps.land(25)
    await bench.start()
    await bench.wake()
    await until(lambda: len(bench.steps.published) == 25, "25 events published")
    assert bench.steps.batches == [10, 10, 5]
    await until(lambda: bench.steps.claims == 4, "one more claim after the burst")


async def test_without_wake_nothing_is_looked_for_until_the_idle_time(bench: Bench) -> None:
    bench.steps.land(1)
    await bench.start(idle_seconds=0.5)
    assert not bench.steps.claims
    await until(lambda: bench.steps.published == ["e0"], "a lost wake made up for")


async def test_events_that_publishing_lands_are_processed_at_once(bench: Bench) -> None:
    bench.steps.land(1)
    bench.steps.land_more = 3
    await bench.start(quiet_seconds=600)
    await bench.wake()
    await until(lambda: len(bench.steps.published) == 4, "what publishing landed")


async def test_a_batch_of_broken_files_alone_is_not_published(bench: Bench) -> None:
    bench.steps.refused = 3
    bench.steps.land(3)
    await bench.start()
    await bench.wake()
    first, _ = await until(_runs_at_least(bench, 2), "a second run after the burst")
    assert await outcome(bench.client, bench.name, first) == "dead"
    assert bench.steps.behind == []

    bench.steps.land(4)
    await bench.wake()
    await until(lambda: bench.steps.published == ["e6"], "the event that is not broken")
    assert bench.steps.prepared == [3, 4]


async def test_a_burst_is_a_run_and_its_outcome_can_be_searched(bench: Bench) -> None:
    bench.steps.land(3)
    await bench.start()
    await bench.wake()
    first, second = await until(_runs_at_least(bench, 2), "a second run after the burst")
    assert await outcome(bench.client, bench.name, first) == "done"
    assert await outcome(bench.client, bench.name, second) == "idle"

    bench.steps.outcome = "dead"
    bench.steps.land(1)
    await bench.wake()
    runs = await until(_runs_at_least(bench, 3), "a third run after the second burst")
    assert await outcome(bench.client, bench.name, runs[1]) == "dead"


def _runs_at_least(bench: Bench, count: int) -> Callable[[], Coroutine[Any, Any, list[str]]]:
    async def runs() -> list[str]:
        runs = await bench.runs()
        return runs if len(runs) >= count else []

    return runs


async def test_an_empty_wake_makes_no_new_run(bench: Bench) -> None:
    handle = await bench.start()
    for count in (1, 2, 3):
        await bench.wake()
        await until(lambda: bench.steps.claims == count, f"check {count}")  # noqa: B023 (awaited here)
    assert await bench.runs() == [handle.first_execution_run_id]


async def test_details_name_events_outcomes_and_steps(bench: Bench) -> None:
    bench.steps.land(3)
    handle = await bench.start(quiet_seconds=600)
    await bench.wake()
    await until(lambda: len(bench.steps.published) == 3, "3 events published")

    async def shown() -> str:
        text = await details(handle)
        return text if "3 done" in text else ""

    text = await until(shown, "the outcome in the details")
    assert "| `id-e0` | done |" in text
    assert all(step in text for step in ("claim", "prepare", "publish"))


async def test_a_long_batch_names_only_the_first_events(client: Client) -> None:
    async with bench_for(client, Steps(limit=100)) as bench:
        bench.steps.land(60)
        handle = await bench.start(quiet_seconds=600)
        await bench.wake()
        await until(lambda: len(bench.steps.published) == 60, "60 events published")
        text = await until(lambda: details(handle), "details")
        assert text.count("| `id-") == 20
        assert "40 more" in text


async def test_paused_drain_finishes_its_batch_and_takes_no_other(bench: Bench) -> None:
    bench.steps.gate = asyncio.Event()
    bench.steps.land(1)
    handle = await bench.start()
    await bench.wake()
    await until(lambda: bench.steps.claims == 1, "the batch is claimed")
    await handle.signal("pause")
    bench.steps.gate.set()
    await until(lambda: bench.steps.published == ["e0"], "the batch in hand is finished")

    bench.steps.land(1)
    await bench.wake()

    async def says_paused() -> bool:
        return "paused" in await details(handle)

    await until(says_paused, "the details say so")
    assert bench.steps.claims == 1
    assert (await (await handle.describe()).memo())["paused"] is True

    await bench.client.get_workflow_handle(bench.name).signal("resume")
    await until(lambda: bench.steps.published == ["e0", "e1"], "carried on after resume")


async def test_passing_fault_is_tried_again(bench: Bench) -> None:
    bench.steps.fail = {"publish": [RetryLater("busy", after=0.05), RetryLater("busy", after=0.05)]}
    bench.steps.land(2)
    await bench.start()
    await bench.wake()
    await until(lambda: len(bench.steps.published) == 2, "published at the third try")
    assert bench.steps.batches == [2]


async def test_outage_is_tried_again(bench: Bench) -> None:
    bench.steps.fail = {"claim": [Unavailable("documents", "away")]}
    bench.steps.land(1)
    await bench.start()
    await bench.wake()
    await until(lambda: bench.steps.published == ["e0"], "published after the outage")


async def test_a_step_that_gives_up_does_not_end_the_drain(bench: Bench) -> None:
    bench.steps.fail = {"publish": [Misconfigured("wrong", remedy="correct it")]}
    bench.steps.land(1)
    handle = await bench.start(fault_seconds=0.5, quiet_seconds=600)
    await bench.wake()

    async def is_reported() -> bool:
        return "publish failed permanently: Misconfigured: wrong — correct it" in await details(
            handle
        )

    await until(is_reported, "the reason in the details")
    bench.steps.land(1)
    await until(lambda: sorted(bench.steps.published) == ["e0", "e1"], "both are processed")
    assert bench.steps.given_up == ["publish"]


async def test_a_bug_is_tried_again_then_given_up_and_never_quoted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "BUG_ATTEMPTS", 2)
    bench.steps.fail = {"prepare": [KeyError("secret body") for _ in range(2)]}
    bench.steps.land(1)
    handle = await bench.start(quiet_seconds=600)
    await bench.wake()

    async def is_reported() -> bool:
        return "prepare failed permanently: Bug: KeyError" in await details(handle)

    await until(is_reported, "the reason in the details")
    history = await readable(bench.client, await handle.fetch_history())
    assert "secret body" not in history
    assert "KeyError" in history


async def test_burst_goes_on_in_a_new_run_when_history_is_long(client: Client) -> None:
    async with bench_for(client, Steps(limit=1)) as bench:
        bench.steps.land(12)
        await bench.start(run_events=60)
        await bench.wake()
        await until(lambda: len(bench.steps.published) == 12, "all published")
        assert len(await bench.runs()) >= 3
        assert bench.steps.batches == [1] * 12


async def test_the_next_batch_is_prepared_while_one_is_published_and_no_third_is_claimed(
    bench: Bench,
) -> None:
    bench.steps.gate = asyncio.Event()
    bench.steps.land(25)
    await bench.start()
    await bench.wake()
    await until(lambda: bench.steps.prepared == [10, 10], "a second batch prepared")
    assert not bench.steps.published
    await bench.client.get_workflow_handle(bench.name).signal("pause")
    bench.steps.gate.set()
    await until(lambda: len(bench.steps.published) == 20, "both in hand are finished")
    assert bench.steps.claims == 2
    await bench.client.get_workflow_handle(bench.name).signal("resume")
    await until(lambda: len(bench.steps.published) == 25, "the rest is processed")
    assert bench.steps.published == [f"e{n}" for n in range(25)]


async def test_who_publishes_knows_the_batch_that_waits_behind(bench: Bench) -> None:
    bench.steps.land(25)
    await bench.start()
    await bench.wake()
    await until(lambda: len(bench.steps.published) == 25, "25 events published")
    assert len(bench.steps.claimed) == 3
    assert bench.steps.behind[:2] == bench.steps.claimed[1:]
    bench.steps.land(1)
    await bench.wake()
    await until(lambda: len(bench.steps.published) == 26, "one more published")
    assert len(set(bench.steps.claimed)) == 4, "no id is used again"


async def test_a_batch_that_fails_leaves_the_one_behind_it_alone(bench: Bench) -> None:
    bench.steps.fail = {"publish": [Misconfigured("wrong", remedy="correct it")]}
    bench.steps.land(20)
    await bench.start()
    await bench.wake()
    await until(lambda: len(bench.steps.published) == 20, "both are processed")
    assert bench.steps.given_up == ["publish"]
    assert bench.steps.batches[:2] == [10, 10]


async def test_a_run_hands_over_only_when_both_batches_are_published(client: Client) -> None:
    async with bench_for(client, Steps(limit=1)) as bench:
        bench.steps.gate = asyncio.Event()
        bench.steps.land(3)
        await bench.start(run_events=35)
        await bench.wake()
        await until(lambda: len(bench.steps.prepared) == 2, "two in hand")
        bench.steps.gate.set()
        await until(lambda: len(bench.steps.published) == 3, "all published")
        runs = await until(_runs_at_least(bench, 2), "a second run")
        for run in runs[:-1]:
            history = await client.get_workflow_handle(bench.name, run_id=run).fetch_history()
            begun = sum(
                e.HasField("activity_task_scheduled_event_attributes") for e in history.events
            )
            ended = sum(
                e.HasField("activity_task_completed_event_attributes") for e in history.events
            )
            assert begun == ended
