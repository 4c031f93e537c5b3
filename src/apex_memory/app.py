"""The composition root: wires every part to the others, on what `connections.py` opens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import chain

from apex_memory.build import build_id
from apex_memory.config import Settings
from apex_memory.connections import Connections, open_connections
from apex_memory.credentials.key_sources import read_keyring
from apex_memory.credentials.overlay import Credentials
from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import Vault
from apex_memory.engines.postgres_space import PROCESSING, PostgresSpace
from apex_memory.errors import Misconfigured
from apex_memory.fetching.backfills import Backfills
from apex_memory.fetching.fetcher import Fetcher
from apex_memory.inbox import Inbox
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.mirror import Mirror
from apex_memory.pipeline import QueryReader, canonical, open_pipeline
from apex_memory.rollout.build_watch import BuildWatch
from apex_memory.rollout.candidate import promoting
from apex_memory.rollout.controller import Controller
from apex_memory.rollout.runs import Runs
from apex_memory.rollout.shadow_gate import copies_of
from apex_memory.rollout.shadow_steps import ShadowSteps
from apex_memory.rollout.shares import Shares
from apex_memory.rollout.subjects import BUILD
from apex_memory.saga.collector import Collector
from apex_memory.saga.dead_letters import DeadLetters
from apex_memory.saga.manifests import live_manifests
from apex_memory.saga.publication import Publication
from apex_memory.saga.rebuild import Rebuild
from apex_memory.saga.recovery import Recovery
from apex_memory.saga.retries import BreakerProbes, ResilientStore
from apex_memory.saga.sweeper import Sweeper
from apex_memory.sealing import Keyring
from apex_memory.search import AnswerCache, Search
from apex_memory.sources import registry
from apex_memory.sources.base import Source
from apex_memory.steps.batches import BatchSteps
from apex_memory.steps.direct import DirectPath
from apex_memory.steps.stalled import StalledDrains
from apex_memory.steps.upkeep import Upkeep


class App:
    """Every part, wired. Build it with `open_app`."""

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        *,
        sources: Mapping[str, Source],
        keyring: Keyring,
        build: str,
    ) -> None:
        self.settings = settings
        self.keyring = keyring
        self.build = build
        self.db = db = connections.db
        self.standby = connections.standby
        self.graph = graph = connections.graph
        self.vectors = vectors = connections.vectors
        self.cache = cache = connections.cache
        self.reranker = connections.reranker
        self.reranker_server = connections.reranker_server
        self.stores = connections.stores
        self.sources = dict(sources)

        self.vault = Vault(db, keyring)
        self.credentials = Credentials(self.vault, self.sources, settings)
        self.payloads = payloads = PayloadStore(
            db,
            connections.objects,
            keyring,
            threshold=settings.payload_threshold_bytes,
            seals=settings.seal_payloads,
            require_space=PostgresSpace(settings).require,
        )
        self.inbox = Inbox(db, payloads)
        self.fetcher = Fetcher(
            db,
            self.sources,
            connections.http,
            VaultTokens(self.vault),
            keep_readings=timedelta(days=settings.reading_days),
            payloads=payloads,
            max_attempts=settings.max_attempts,
        )
        self.backfills = Backfills(db, payloads)
        self.mirror = Mirror(
            db, self.sources, installation=connections.installation, days=settings.mirror_days
        )

        self.pipeline = open_pipeline(
            settings,
            connections.embedder,
            build=build,
            live_manifests=partial(live_manifests, db),
        )
        publication = partial(
            Publication,
            db,
            graph,
            vectors,
            cache,
            settings=settings,
            pipeline=self.pipeline.pipeline,
        )
        live = {name: ResilientStore(name, settings) for name in ("graph", "vectors")}
        # Copies have breakers of their own: what copies fail at does not stop live events.
        copies = {name: ResilientStore(f"shadow {name}", settings) for name in live}
        self.publication = publication(resilient_stores=live)
        shadow_publication = publication(resilient_stores=copies, step_prefix="shadow ")
        pings = {"graph": graph.ping, "vectors": vectors.ping}
        self.breaker_probes = BreakerProbes(
            {live[name]: ping for name, ping in pings.items()}
            | {copies[name]: ping for name, ping in pings.items()}
            | {connections.embedder_server: partial(connections.embedder.query, "probe")}
            | ({self.reranker_server: self.reranker.probe} if self.reranker else {})
        )
        self.dead_letters = DeadLetters(db)
        self.recovery = Recovery(db, graph, vectors, self.publication)
        self.rebuild = Rebuild(db, graph, vectors, cache, self.publication, self.recovery)
        self.sweeper = Sweeper(db, graph, vectors, self.stores, live, lease=settings.lease_seconds)
        self.collector = Collector(db, graph, vectors, settings)

        self.steps = BatchSteps(
            self.inbox,
            payloads,
            self.pipeline,
            self.publication,
            self.sources,
            settings,
            space=PostgresSpace(settings, share=PROCESSING),
            build=build,
        )
        self.direct = DirectPath(self.steps)
        self.stalled = StalledDrains(self.direct, self.inbox, self.sources)
        self.shadow = ShadowSteps(
            db,
            graph,
            vectors,
            shadow_publication,
            payloads,
            self.pipeline,
            self.sources,
            settings,
        )
        self.shares = Shares(db)
        self.upkeep = Upkeep(
            self.recovery,
            self.sweeper,
            self.collector,
            self.fetcher.readings,
            self.mirror,
            payloads,
        )
        self.runs = Runs(db, settings.rollout, self.sources)
        self.rollouts = Controller(db, self.runs, copies_of=copies_of)
        self.rollouts.on_change(BUILD, promoting(db))
        self.builds = BuildWatch(db, build)
        self.search = Search(
            db,
            graph,
            vectors,
            cache,
            embed_query=connections.embedder.query,
            embedder_id=connections.embedder.id,
            extract_query=QueryReader(source.numbered for source in sources.values()),
            canonical_ref=canonical,
            key_prefixes={name: source.own_key_prefixes() for name, source in sources.items()},
            id_refs=list(chain.from_iterable(source.id_refs for source in sources.values())),
            called={name: source.called for name, source in sources.items()},
            date_order=settings.date_order,
            reranker=self.reranker,
            standby=self.standby,
            answers=AnswerCache(),
        )


@asynccontextmanager
async def open_app(
    settings: Settings, *, build: str = "", any_embedder: bool = False, answers: bool = False
) -> AsyncIterator[App]:
    """Open every part against the URLs in the settings, and close them at the end. `build` defaults to that of the settings.

    `any_embedder` is for a worker that only processes copies: its embedder may differ from that of the memory. `answers` is
    for one that answers searches: only this reads from the standby of the settings, and has to run `Standby.run`.

    Raises `Misconfigured` for settings that cannot work, `Unavailable` without PostgreSQL. The other stores
    may be unavailable: what needs them waits.
    """
    keyring = await asyncio.to_thread(read_keyring, settings)
    if settings.payload_store:
        keyring.require_key()
    sources = registry.load(settings.sources, settings.source_path)
    async with open_connections(
        settings, any_embedder=any_embedder, answers=answers
    ) as connections:
        app = App(
            settings,
            connections,
            sources=sources,
            keyring=keyring,
            build=build or settings.build_id or build_id(),
        )
        try:
            await app.payloads.choose_key()
            with suppress(Misconfigured):  # `keep_fresh` logs it again; the other sources work
                await app.credentials.apply()
            yield app
        finally:
            try:
                await app.vault.close()
            finally:
                await app.upkeep.close()
                await app.pipeline.close()
