"""The worker, able to kill itself right after a named step, and reaching its stores through proxies and by a name.

The folder named by FAULTS_DIR holds the faults: `die` holds the name of a step (it is removed when it
has been obeyed), `proxies.json` the port that stands for each store's, and `names` the host name that cannot be
resolved and how: `fails NAME` or `hangs NAME`. Each lookup that meets it adds a byte to `names.met`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex_memory.config import IN_DOCUMENTS
from apex_memory.flows.__main__ import main
from apex_memory.saga.journal import Journal
from apex_memory.saga.publication import Publication
from apex_memory.steps.batches import BatchSteps

Did = Callable[[Any], bool]
STORES_NAME = "stores.test"
VENDOR_NAME = "localhost"  # no other name may be used without TLS


def always(answer: Any) -> bool:
    return True


# Where the step ends, and how its answer shows that there was something to do.
STEPS: dict[str, tuple[type, str, Did]] = {
    "claim": (BatchSteps, "claim", lambda batch: bool(batch.events)),
    "manifests": (Publication, "store_manifests", lambda report: bool(report.prepared)),
    "begin": (Journal, "begin", lambda begun: bool(begun.stages)),
    "graph": (Publication, "_write_graph", always),
    "vectors": (Publication, "_write_vectors", always),
    "verify": (Publication, "verify", always),
    "commit": (Journal, "commit", lambda committed: bool(committed.done)),
}


def deadly(step: str, method: Callable[..., Any], did: Did, order: Path) -> Callable[..., Any]:
    async def call(*given: Any, **named: Any) -> Any:
        answer = await method(*given, **named)
        if did(answer) and order.exists() and order.read_text() == step:
            order.unlink(missing_ok=True)  # another worker may have obeyed it just now
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    return call


def arm(folder: Path) -> None:
    for step, (owner, name, did) in STEPS.items():
        setattr(owner, name, deadly(step, getattr(owner, name), did, folder / "die"))


def detour(folder: Path) -> None:
    """Put the stores' name and the proxies' ports into the addresses of the stores."""
    ports: dict[str, int] = json.loads((folder / "proxies.json").read_text())
    urls = {store: os.environ[f"APEX_{store.upper()}"] for store in ports}
    if urls["graph"] == IN_DOCUMENTS:  # the same server, by a proxy of its own
        urls["graph"] = urls["documents"]
    for store, port in ports.items():
        url = re.sub(r"127\.0\.0\.1:\d+", f"{STORES_NAME}:{port}", urls[store])
        # `neo4j:` asks the server for its address, and goes there: past the proxy.
        os.environ[f"APEX_{store.upper()}"] = url.replace("neo4j://", "bolt://")


def resolve_unreliably(folder: Path) -> None:
    """Resolve the two names to this machine, except while `names` breaks one of them."""
    ordinary, order, met = socket.getaddrinfo, folder / "names", folder / "names.met"

    def broken(name: str) -> str:
        text = order.read_text() if order.exists() else ""
        how, _, which = text.partition(" ")
        return how if which == name else ""

    def getaddrinfo(host: Any, *given: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (STORES_NAME, VENDOR_NAME):
            return ordinary(host, *given, **named)
        if broken(name):
            with met.open("a") as file:
                file.write(".")
        while broken(name) == "hangs":
            time.sleep(0.05)  # the fault: it holds its thread
        if broken(name):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ordinary("127.0.0.1", *given, **named)

    socket.getaddrinfo = getaddrinfo


if __name__ == "__main__":
    folder = Path(os.environ["FAULTS_DIR"])
    arm(folder)
    detour(folder)
    resolve_unreliably(folder)
    os._exit(main())
