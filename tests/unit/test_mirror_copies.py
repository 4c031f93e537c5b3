"""The legacy mirror on a real PostgreSQL, before a real HTTP receiver: order, faults, dead letters, permitted addresses."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.errors import Conflict, Misconfigured, NotFound, Unavailable
from apex_memory.inbox.routing import bucket_of
from apex_memory.mirror import Mirror, copies, forwarder, guard, queue, target
from apex_memory.mirror.copies import MirrorCopy
from apex_memory.mirror.forwarder import back_off
from apex_memory.mirror.guard import GuardedBackend, is_public
from apex_memory.mirror.target import Outcome, Target, outcome_of
from apex_memory.model import Event, now
from apex_memory.sources import registry
from apex_memory.sources.base import Source
from apex_memory.stores.lease import acquire
from apex_memory.stores.postgres import Postgres
from tests.receiver import LOOPBACK, Receiver, Response, receiving
from tests.waiting import until


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(forwarder, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(forwarder, "LONGEST_WAIT", 0.05)


def sources_with(url: str, **settings: Any) -> dict[str, Source]:
    given = {"mirror_url": url, "mirror_networks": [LOOPBACK], **settings}
    return registry.load({"frontapp": given})


def mirror_to(db: Postgres, url: str, **settings: Any) -> Mirror:
    return Mirror(db, sources_with(url, **settings), installation=uuid.UUID(int=7), days=7)


def copy(n: int, *, source: str = "frontapp", bucket: int | None = None) -> MirrorCopy:
    headers = copies.pack_headers(
        [(b"x-signature", b"s%d" % n), (b"x-twice", b"1"), (b"x-twice", b"2")]
    )
    return MirrorCopy(source, b"n=%d" % n, headers, b"body %d" % n, bucket)


async def keep(mirror: Mirror, *numbers: int, bucket: int | None = None) -> None:
    await mirror.land([], [copy(n, bucket=bucket) for n in numbers])


async def states(db: Postgres) -> list[str]:
    rows = await db.fetch("SELECT state FROM mirror_copies ORDER BY id")
    return [row["state"] for row in rows]


class Running:
    """The forwarder of a mirror while a test runs."""

    def __init__(self, mirror: Mirror) -> None:
        self._task = asyncio.create_task(mirror.forwarder.run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def running() -> AsyncIterator[Any]:
    tasks: list[Running] = []

    def start(mirror: Mirror) -> Running:
        tasks.append(Running(mirror))
        return tasks[-1]

    yield start
    for task in tasks:
        await task.stop()


def bodies(*numbers: int) -> list[bytes]:
    return [b"body %d" % n for n in numbers]


async def received(receiver: Receiver, count: int) -> None:
    await until(lambda: len(receiver.accepted) >= count, f"{count} webhooks are mirrored")


async def test_copies_arrive_in_order_with_headers_and_body_as_they_came(
    db: Postgres, receiver: Receiver, running: Any
) -> None:
    mirror = mirror_to(db, receiver.url + "?token=t")
    await keep(mirror, 1, 2)
    await keep(mirror, 3)
    running(mirror)
    await received(receiver, 3)
    await keep(mirror, *range(4, 60))
    await received(receiver, 59)
    assert receiver.bodies == bodies(*range(1, 60))
    first = receiver.received[0]
    assert first.target == "/legacy?token=t&n=1"
    assert first.headers == [
        ("host", f"127.0.0.1:{receiver.port}"),
        ("x-signature", "s1"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("content-length", "6"),
    ]
    assert receiver.connections == 1, "one connection serves them all"
    await until(lambda: ended(db, "delivered", 59), "all are marked")
    row = await db.fetch_one(
        "SELECT count(*) AS n FROM mirror_copies WHERE body IS NOT NULL OR headers IS NOT NULL"
    )
    assert row is not None and row["n"] == 0, "what is delivered keeps no content"


async def ended(db: Postgres, state: str, count: int) -> bool:
    return (await states(db)).count(state) == count


async def test_a_copy_of_a_request_drops_what_belongs_to_one_connection(db: Postgres) -> None:
    mirror = mirror_to(db, "https://legacy.test/")
    given = [
        (b"Host", b"apex"),
        (b"Content-Length", b"2"),
        (b"Connection", b"close, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"X-Front-Signature", b"abc="),
        (b"Content-Type", b"application/json"),
    ]
    source = mirror._sources["frontapp"]
    made = mirror.copy_of(source, query=b"", headers=given, body=b"{}", events=[])
    assert made is not None
    assert copies.unpack_headers(made.headers) == [
        (b"x-front-signature", b"abc="),
        (b"content-type", b"application/json"),
        (b"via", b"1.1 apex-000000000000"),
    ]
    again = copies.unpack_headers(made.headers)
    assert mirror.copy_of(source, query=b"", headers=again, body=b"{}", events=[]) is None, (
        "a target that leads back to this installation makes no circle"
    )


async def test_copies_and_events_land_together_or_not_at_all(db: Postgres) -> None:
    mirror = mirror_to(db, "https://legacy.test/")
    event = Event(
        source="frontapp", event_id="e", doc_key="d", version=1, occurred_at=now(), payload=b"{}"
    )
    broken = MirrorCopy("frontapp", b"", b"", b"x", bucket=2**40)  # no integer of PostgreSQL
    with pytest.raises(Exception, match="documents"):
        await mirror.land([event], [broken])
    assert await db.fetch("SELECT FROM inbox") == [] and await states(db) == []
    await mirror.land([event], [copy(1)])
    assert len(await db.fetch("SELECT FROM inbox")) == 1 and await states(db) == ["waiting"]


async def test_a_target_that_fails_holds_the_order_and_comes_back(
    db: Postgres, receiver: Receiver, running: Any
) -> None:
    mirror = mirror_to(db, receiver.url)
    statuses = iter([503, 429, 500, 408])
    receiver.script = lambda request: Response(next(statuses, 200))
    await keep(mirror, 1, 2, 3)
    running(mirror)
    await received(receiver, 3)
    assert receiver.bodies == bodies(1, 2, 3)
    assert [request.body for request in receiver.received] == bodies(1, 1, 1, 1, 1, 2, 3)
    await until(lambda: ended(db, "delivered", 3), "all are marked")
    [mirrored] = await mirror.summary()
    assert mirrored.failing_since is None
    assert mirrored.last_error == "the target responds with status 408"


async def test_retry_after_is_obeyed_up_to_the_time_that_a_target_may_hold(
    db: Postgres, receiver: Receiver, running: Any
) -> None:
    mirror = mirror_to(db, receiver.url, mirror_hold_seconds=500)
    receiver.script = lambda request: Response(503, {"Retry-After": "120"})
    await keep(mirror, 1)
    running(mirror)
    await until(lambda: waits(db, 110, 120), "it waits for 120 s")
    receiver.script = lambda request: Response(503, {"Retry-After": "99999999"})
    await db.execute("UPDATE mirrors SET next_at = NULL")
    await until(lambda: waits(db, 490, 500), "it waits for no longer than it may")
    assert len(receiver.received) == 2


async def waits(db: Postgres, least: float, most: float) -> bool:
    row = await db.fetch_one(
        "SELECT extract(epoch FROM next_at - clock_timestamp())::float AS s FROM mirrors"
    )
    return row is not None and row["s"] is not None and least <= row["s"] <= most


async def test_a_target_that_is_away_holds_nothing_for_ever(
    db: Postgres, receiver: Receiver, running: Any
) -> None:
    mirror = mirror_to(db, receiver.url, mirror_hold_seconds=1)
    receiver.script = lambda request: Response(503)
    await keep(mirror, 1, 2, 3)
    running(mirror)
    await until(lambda: ended(db, "dead", 3), "they become dead letters together", seconds=20)
    await keep(mirror, 4)
    receiver.script = lambda request: Response()
    await received(receiver, 1)
    assert receiver.bodies == bodies(4), "what came later is not held"
    ids = await mirror.ids_of("frontapp", states=("dead",))
    assert await mirror.redrive(ids, actor="me") == 3
    await received(receiver, 4)
    assert receiver.bodies == bodies(4, 1, 2, 3), "a redrive keeps their order"
    assert (await states(db)).count("dead") == 0


async def test_after_an_outage_of_the_worker_one_failure_kills_nothing(
    db: Postgres, receiver: Receiver, running: Any
) -> None:
    mirror = mirror_to(db, receiver.url, mirror_hold_seconds=60)
    await keep(mirror, 1, 2)
    await db.execute("UPDATE mirror_copies SET queued_at = queued_at - interval '1 day'")
    statuses = iter([503])
    receiver.script = lambda request: Response(next(statuses, 200))
    running(mirror)
    await received(receiver, 2)
    assert receiver.bodies == bodies(1, 2)


async def test_a_refused_copy_becomes_a_dead_letter_and_the_next_ones_follow(
    db: Postgres, receiver: Receiver, running: Any
) -> None:
    mirror = mirror_to(db, receiver.url)
    receiver.script = lambda request: Response(422 if request.body == b"body 2" else 200)
    await keep(mirror, 1, 2, 3)
    running(mirror)
    await received(receiver, 2)
    assert receiver.bodies == bodies(1, 3)
    assert [request.body for request in receiver.received].count(b"body 2") == queue.REFUSALS
    await until(lambda: ended(db, "delivered", 2), "the others are marked")
    [dead] = await mirror.find(state="dead", source="frontapp", after=None, limit=10)
    assert dead.last_error == "the target refuses it with status 422" and dead.attempts == 5
    assert await mirror.discard([dead.id], actor="me", reason="sent by hand") == 1
    row = await db.fetch_one(
        "SELECT state, body, headers FROM mirror_copies WHERE id = %s", (dead.id,)
    )
    assert row == {"state": "discarded", "body": None, "headers": None}
    audit = await db.fetch("SELECT action, subject, detail FROM audit ORDER BY id DESC LIMIT 1")
    assert (
        audit[0]["subject"] == "source:frontapp" and audit[0]["detail"]["reason"] == "sent by hand"
    )


async def test_a_copy_on_which_sending_fails_unexpectedly_holds_nothing_for_ever(
    db: Postgres, receiver: Receiver, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Target.send

    async def send(self: Target, query: bytes, headers: Any, body: bytes) -> Outcome:
        if body == bodies(1)[0]:
            raise RuntimeError("a bug of ours")
        return await real(self, query, headers, body)

    monkeypatch.setattr(Target, "send", send)
    mirror = mirror_to(db, receiver.url)
    await keep(mirror, 1, 2)
    running(mirror)
    await until(lambda: ended(db, "dead", 1), "the copy is a dead letter", seconds=20)
    await until(lambda: ended(db, "delivered", 1), "the next copy is delivered")
    assert [request.body for request in receiver.received] == [bodies(2)[0]]


async def test_a_target_that_refuses_everything_is_not_tried_five_times_for_each(
    db: Postgres, receiver: Receiver, running: Any
) -> None:
    mirror = mirror_to(db, receiver.url)
    receiver.script = lambda request: Response(404)
    await keep(mirror, *range(10))
    running(mirror)
    await until(lambda: ended(db, "dead", 10), "all are dead letters")
    assert len(receiver.received) == queue.REFUSALS + 9


async def test_redirects_are_not_followed(db: Postgres, receiver: Receiver, running: Any) -> None:
    async with receiving() as other:
        mirror = mirror_to(db, receiver.url)
        receiver.script = lambda request: Response(307, {"Location": other.url})
        await keep(mirror, 1)
        running(mirror)
        await until(lambda: ended(db, "dead", 1), "it is a dead letter")
        assert other.received == []


async def test_a_target_that_hangs_is_a_failure(
    db: Postgres, receiver: Receiver, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "SEND_SECONDS", 0.2)
    mirror = mirror_to(db, receiver.url)
    receiver.script = lambda request: Response(hang=len(receiver.received) == 1)
    await keep(mirror, 1, 2)
    running(mirror)
    await received(receiver, 2)
    assert [request.body for request in receiver.received] == bodies(1, 1, 2)


async def test_a_worker_that_ends_between_response_and_mark_sends_the_copy_again(
    db: Postgres, receiver: Receiver, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = mirror_to(db, receiver.url)
    await keep(mirror, 1, 2)
    marked = asyncio.Event()

    async def killed(db: Postgres, source: str, id: int) -> None:
        marked.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(queue, "mark_delivered", killed)
        first = running(mirror)
        await asyncio.wait_for(marked.wait(), 10)
        await first.stop()
    assert receiver.bodies == bodies(1) and await states(db) == ["waiting", "waiting"]
    running(mirror_to(db, receiver.url))
    await until(lambda: ended(db, "delivered", 2), "the next worker goes on")
    assert receiver.bodies == bodies(1, 1, 2), "at least once, in order"


async def test_two_workers_keep_one_order(db: Postgres, receiver: Receiver, running: Any) -> None:
    for _ in range(3):
        running(mirror_to(db, receiver.url))
    mirror = mirror_to(db, receiver.url)
    for n in range(60):
        await keep(mirror, n)
    await received(receiver, 60)
    assert receiver.bodies == bodies(*range(60))


async def test_a_worker_without_its_lease_sends_no_longer(
    database_url: str, db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut off from PostgreSQL while a slow target has its request; another worker goes on in the meantime."""
    monkeypatch.setattr(forwarder, "LEASE_SECONDS", 1.0)
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = (await reader.readexactly(len(b"body 1"))).decode()
        seen.append(body)
        if len(seen) == 1:
            await asyncio.wait_for(reader.read(), 10)
            seen.append("hung up")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    mirror = mirror_to(db, url)
    await keep(mirror, 1, 2)
    cut_off = Postgres(database_url)
    await cut_off.open()
    without_lease = mirror_to(cut_off, url).forwarder
    first = asyncio.create_task(without_lease.forward("frontapp"))
    await until(lambda: seen, "the target has the first copy")

    async def no_route(*_: object) -> int:
        raise Unavailable("documents", "no route")

    monkeypatch.setattr(cut_off, "execute", no_route)

    async def sent() -> bool:
        await mirror.forwarder.forward("frontapp")
        return len(seen) == 4

    await until(sent, "the other worker has sent both", seconds=10)
    await asyncio.wait_for(first, 5)
    assert seen == ["body 1", "hung up", "body 1", "body 2"]
    assert await states(db) == ["delivered", "delivered"]
    await without_lease._stop()
    await mirror.forwarder._stop()
    await cut_off.close()
    server.close()


async def test_a_send_may_last_longer_than_a_lease_that_is_renewed(
    db: Postgres, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder, "LEASE_SECONDS", 0.9)
    mirror, send = mirror_to(db, receiver.url), Target.send

    async def slow(self: Target, *copy: Any) -> Outcome:
        await asyncio.sleep(2)  # longer than the lease, which is the point of this test
        return await send(self, *copy)

    monkeypatch.setattr(Target, "send", slow)
    await keep(mirror, 1)
    await mirror.forwarder.forward("frontapp")
    await mirror.forwarder._stop()
    assert await states(db) == ["delivered"]


async def test_a_lease_of_a_dead_worker_runs_out(
    db: Postgres, receiver: Receiver, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await acquire(db, "mirror:frontapp", uuid.uuid4(), seconds=0.5)
    mirror = mirror_to(db, receiver.url)
    await keep(mirror, 1)
    running(mirror)
    await received(receiver, 1)


async def test_concurrent_landings_appear_in_the_order_of_their_ids(db: Postgres) -> None:
    mirror = mirror_to(db, "https://legacy.test/")
    seen: list[int] = []

    async def watch() -> None:
        while len(seen) < 80:
            rows = await db.fetch(
                "SELECT id FROM mirror_copies WHERE id > %s ORDER BY id", (seen[-1] if seen else 0,)
            )
            seen.extend(row["id"] for row in rows)

    async def land(first: int) -> None:
        for n in range(first, first + 10):
            await keep(mirror, n)

    await asyncio.wait_for(asyncio.gather(watch(), *(land(10 * k) for k in range(8))), 30)
    assert len(seen) == 80, "none appears behind one that was read already"


async def test_rest_mirrors_the_documents_that_are_not_rolled_over(db: Postgres) -> None:
    mirror = mirror_to(db, "https://legacy.test/", mirror="rest")
    events = [
        Event(
            source="frontapp",
            event_id=f"e{n}",
            doc_key=f"d{n}",
            version=1,
            occurred_at=now(),
            payload=b"{}",
        )
        for n in range(200)
    ]
    source = mirror._sources["frontapp"]

    async def mirrored(share: int | None) -> set[str]:
        await db.execute("DELETE FROM rollouts")
        await db.execute("DELETE FROM mirror_copies")
        if share is not None:
            await db.execute(
                "INSERT INTO rollouts (subject, share) VALUES ('source:frontapp', %s)", (share,)
            )
        for event in events:
            body = event.doc_key.encode()
            made = mirror.copy_of(source, query=b"", headers=[], body=body, events=[event])
            assert made is not None
            await mirror.land([], [made])
        return {bytes(r["body"]).decode() for r in await db.fetch("SELECT body FROM mirror_copies")}

    for share in (0, 10, 50, 100):
        expected = {event.doc_key for event in events if bucket_of(event.doc_id) >= share}
        assert await mirrored(share) == expected, share
    assert await mirrored(None) == set(), "without a rollout Temporal processes all of them"


async def test_rest_mirrors_a_webhook_until_all_that_it_names_is_rolled_over(db: Postgres) -> None:
    mirror = mirror_to(db, "https://legacy.test/", mirror="rest")
    assert copies.last_bucket([]) == 99, "hints name no document: until the whole source is"
    await db.execute("INSERT INTO rollouts (subject, share) VALUES ('source:frontapp', 50)")
    await keep(mirror, 1, bucket=49)
    await keep(mirror, 2, bucket=50)
    await keep(mirror, 3, bucket=99)
    rows = await db.fetch("SELECT body FROM mirror_copies ORDER BY id")
    assert [bytes(row["body"]) for row in rows] == bodies(2, 3)


async def test_only_dead_copies_are_redriven_and_ended_ones_are_not_discarded(db: Postgres) -> None:
    mirror = mirror_to(db, "https://legacy.test/")
    await keep(mirror, 1)
    [id] = await mirror.ids_of("frontapp", states=("waiting",))
    with pytest.raises(Conflict, match="is waiting"):
        await mirror.redrive([id], actor="me")
    with pytest.raises(NotFound):
        await mirror.redrive([id + 1], actor="me")
    assert await mirror.discard([id], actor="me", reason="test") == 1
    with pytest.raises(Conflict, match="is discarded"):
        await mirror.discard([id], actor="me", reason="test")


async def test_records_are_forgotten_after_their_days_and_dead_letters_never(db: Postgres) -> None:
    mirror = mirror_to(db, "https://legacy.test/")
    await keep(mirror, 1, 2, 3)
    ids = await mirror.ids_of("frontapp", states=("waiting",))
    await mirror.discard([ids[0]], actor="me", reason="test")
    await db.execute("UPDATE mirror_copies SET state = 'dead' WHERE id = %s", (ids[1],))
    await db.execute(
        "UPDATE mirror_copies SET ended_at = clock_timestamp() - interval '8 days' WHERE state <> 'waiting'"
    )
    assert await mirror.forget() == 1
    assert await states(db) == ["dead", "waiting"]


async def test_large_bodies_are_read_few_at_a_time(
    db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AT_ONCE_BYTES", 1_000)
    mirror = mirror_to(db, "https://legacy.test/")
    sizes = [2_000, 400, 400, 400]
    await mirror.land([], [MirrorCopy("frontapp", b"", b"", bytes(size)) for size in sizes])
    heads = []
    while rows := await queue.head(db, "frontapp"):
        heads.append([len(row.body) for row in rows])
        for row in rows:
            await queue.mark_delivered(db, "frontapp", row.id)
    assert heads == [[2_000], [400, 400], [400]]


REFUSED = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "::",
    "::1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",  # metadata of Alibaba Cloud
    "169.254.169.254",  # metadata of most clouds
    "169.254.170.2",
    "168.63.129.16",  # Azure
    "192.0.0.192",  # Oracle
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "fe80::1",
    "fe80::1%2",
    "fc00::1",
    "fd00:ec2::254",  # metadata of AWS by IPv6
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:a9fe:a9fe::1",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_no_mirror_to_this_machine_its_links_or_private_networks(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not GuardedBackend([], encrypted=True).permits(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_permitted_with_tls_only(address: str) -> None:
    assert GuardedBackend([], encrypted=True).permits(ip_address(address))
    assert not GuardedBackend([], encrypted=False).permits(ip_address(address))


@given(st.ip_addresses())
def test_an_address_is_permitted_exactly_if_it_is_public_or_named(address: Any) -> None:
    named = GuardedBackend([ip_network(address)], encrypted=False)
    assert named.permits(address) == (guard.effective(address) == address)
    assert GuardedBackend([], encrypted=True).permits(address) == is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0"])
async def test_other_spellings_of_loopback_are_refused_when_it_connects(
    receiver: Receiver, host: str
) -> None:
    url = f"http://{host}:{receiver.port}/"
    outcome = await Target(url, [ip_network("10.0.0.0/8")]).send(b"", [], b"x")
    assert outcome.kind == "failed" and "mirror_networks" in outcome.reason
    assert receiver.connections == 0


async def test_a_name_is_resolved_once_and_the_checked_address_is_connected(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.1", "127.0.0.2"])
    resolved: list[str] = []

    async def resolve(host: str, port: int, **more: Any) -> list[Any]:
        resolved.append(host)
        return [(0, 0, 0, "", (next(answers), port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    only = [ip_network("127.0.0.1/32")]
    target = Target(f"http://rebind.test:{receiver.port}/", only)
    assert (await target.send(b"", [], b"x")).kind == "delivered"
    assert resolved == ["rebind.test"], "the address that was checked is the one that is connected"
    other = Target(f"http://rebind.test:{receiver.port}/", only)
    assert (await other.send(b"", [], b"x")).kind == "failed", "and the next answer is checked too"
    await target.close()


async def test_headers_that_http_cannot_carry_are_refused_not_retried_for_ever(
    receiver: Receiver,
) -> None:
    aim = Target(receiver.url, [ip_network(LOOPBACK)])
    assert (await aim.send(b"", [(b"bad name", b"x")], b"x")).kind == "refused"
    assert (await aim.send(b"a b", [], b"x")).kind == "refused"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"mirror_url": "http://legacy.test/"}, "mirror_networks"),
        ({"mirror_url": "ftp://legacy.test/"}, "must be https"),
        ({"mirror_url": "https:///x"}, "must be https"),
        ({"mirror_url": "https://u:p@legacy.test/"}, "no user"),
        ({"mirror_url": "https://legacy.test/", "mirror": "some"}, "'all' or 'rest'"),
        ({"mirror_networks": ["10.0.0.1/8"]}, "not a valid IPv4 or IPv6 network"),
        ({"mirror_hold_seconds": 0}, "greater than 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(Misconfigured, match=why):
        registry.load({"frontapp": settings})


@pytest.mark.parametrize("source", ["documents", "llm", "edi"])
def test_only_webhooks_are_mirrored_because_others_carry_a_key_of_apex(source: str) -> None:
    with pytest.raises(Misconfigured, match="only webhooks"):
        registry.load({source: {"mirror_url": "https://legacy.test/"}})


@given(st.integers(100, 599))
def test_every_status_has_one_outcome(status: int) -> None:
    kind = outcome_of(status, None).kind
    if 200 <= status < 300:
        assert kind == "delivered"
    elif status >= 500 or status in (408, 425, 429):
        assert kind == "failed"
    else:
        assert kind == "refused"


@given(st.integers(0, 10**6))
def test_the_back_off_is_bounded(failures: int) -> None:
    assert 0 < back_off(failures) <= 90
