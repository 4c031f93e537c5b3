"""Smoke test of a running installation: a day of the simulated vendors, the example documents, and questions about them.

Runs in the image beside the service `simulator`. The exit code is 0 when everything sent is in memory and every
question has an answer.
"""

from __future__ import annotations

import sys
import time

from apex_memory.cli.client import Gateway, gateway
from apex_memory.cli.demo import (
    QUESTIONS,
    SHIPMENT,
    DayResult,
    documents_folder,
    progress_of,
    waiting_for,
)
from apex_memory.cli.ingest import SentFile, send_files
from apex_memory.client import SearchAnswer
from apex_memory.errors import ApexError

STALL_SECONDS = 240.0
"""Without any progress for so long it gives up."""
PAUSE_SECONDS = 2.0
ANSWER_SECONDS = 60.0
"""A store that has just come back is left out of searches for some seconds."""
DOCUMENTS = 60
"""Fewest documents of a day of the vendors, so that a simulator that sends nothing does not pass."""


def main() -> int:
    with gateway() as api:
        files = [
            SentFile(file, f"smoke/{file.name}") for file in sorted(documents_folder().iterdir())
        ]
        send_files(api, files, wait=False, timeout=0, quiet=True)
        changed, known, quiet = time.monotonic(), None, 0
        while quiet < 5:
            rows = api.call("GET", "/v1/sources", patience=STALL_SECONDS)["sources"]
            now = progress_of(rows)
            documents = sum(row["documents"] for row in rows)
            settled = DayResult(rows, 0).settled and now == known and documents >= DOCUMENTS
            quiet = quiet + 1 if settled else 0
            if now != known:
                changed, known = time.monotonic(), now
            if time.monotonic() - changed > STALL_SECONDS:
                print(
                    f"nothing has changed for {STALL_SECONDS:.0f} s; {documents} documents; unfinished:"
                )
                print("\n".join(waiting_for(rows)))
                return 1
            time.sleep(PAUSE_SECONDS)
        print(f"{documents} documents of {len(rows)} sources are in memory")
        failed = 0
        for question in QUESTIONS:
            answer = full_answer(api, question)
            good = bool(answer.hits) and not answer.degraded
            failed += not good
            without = f" without {', '.join(answer.degraded)}" if answer.degraded else ""
            titles = [hit.title for hit in answer.hits]
            print(f"{'ok' if good else 'FAILED'}: {question} ->{without} {titles}")
        of_shipment = api.search(entities=[f"shipment:{SHIPMENT}"], limit=100).hits
        sources = sorted({hit.source for hit in of_shipment})
        print(f"{SHIPMENT} is known from {', '.join(sources)}")
        return 1 if failed or len(sources) < 2 else 0


def full_answer(api: Gateway, question: str) -> SearchAnswer:
    """Return an answer in which every store took part, or after a while the last one that came."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        answer = api.search(question, limit=3)
        if not answer.degraded or time.monotonic() > deadline:
            return answer
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ApexError as error:
        sys.exit(f"{error}: {error.remedy}")
