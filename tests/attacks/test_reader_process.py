"""The process that parses foreign files holds no secret, and can get no rights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apex_memory.model import File
from apex_memory.pipeline.reader import FileReader, reader_environment

SECRETS = {
    "APEX_SECRET_KEY": "sealing-key",
    "APEX_DOCUMENTS": "postgresql://apex:password@db/apex",
    "AWS_SECRET_ACCESS_KEY": "s3-secret",
    "PGPASSWORD": "password",
    "GOOGLE_APPLICATION_CREDENTIALS": "/secrets/key.json",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=token",
    "HTTPS_PROXY": "http://user:password@proxy",
}


def test_only_named_variables_reach_the_reader() -> None:
    needed = {"PATH": "/bin", "LANG": "C.UTF-8", "LC_ALL": "C", "TZ": "UTC", "PYTHONPATH": "/src"}
    environment = reader_environment({**SECRETS, **needed})
    assert environment == {**needed, "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_reader_has_no_secret_and_gets_no_privilege(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    reader = FileReader(processes=1)
    try:
        page = File("a.html", "text/html", b"<p>The bear met SHP-100045.</p>")
        read = await reader.append_files("text", [page])
        assert "SHP-100045" in read.parsed.text
        [process] = reader._idle
        held = Path(f"/proc/{process.pid}/environ").read_bytes()
        for value in SECRETS.values():
            assert value.encode() not in held
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        assert "NoNewPrivs:\t1" in status
    finally:
        await reader.close()
