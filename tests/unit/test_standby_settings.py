"""Settings of a standby that could let a reader lose what it reads are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from apex_memory.config import load_settings
from apex_memory.errors import Misconfigured

SERVER = {"documents": "postgresql://a,b/apex?target_session_attrs=read-write"}
STANDBY = {"documents_standby": "postgresql://a,b/apex?target_session_attrs=standby"}


def test_a_standby_within_the_grace_is_accepted() -> None:
    settings = load_settings(**SERVER, **STANDBY)
    assert settings.documents_standby_seconds == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (STANDBY, "only where `documents` is the address of a server"),
        (SERVER | {"documents_standby": "b:5432"}, "must start with postgresql://"),
        (SERVER | STANDBY | {"documents_standby_seconds": 0}, "documents_standby_seconds"),
        (SERVER | STANDBY | {"documents_standby_seconds": 40}, "grace_seconds must be above"),
        (SERVER | STANDBY | {"snapshot_seconds": 55}, "grace_seconds must be above"),
    ],
)
def test_others_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        load_settings(**given)


def test_files_for_tls_count_for_the_standby_too(tmp_path: Any) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text("")
    url = "postgresql://b/apex?sslmode=verify-full"
    settings = load_settings(**SERVER, documents_standby=url, ca_file=authority)
    assert f"sslrootcert={authority}".replace("/", "%2F") in settings.documents_standby
