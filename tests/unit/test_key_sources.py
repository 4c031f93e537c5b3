"""Where the installation's keys come from: a setting, a command, a file, in this order."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from apex_memory.cli.up import _secret_key
from apex_memory.config import Settings
from apex_memory.credentials import key_sources
from apex_memory.credentials.key_sources import read_keyring
from apex_memory.errors import Misconfigured
from apex_memory.sealing import Keyring, key_id, new_key, read_keys

A, B, C = new_key(), new_key(), new_key()


def python(code: str) -> str:
    """A command line that runs this code."""
    return shlex.join([sys.executable, "-c", code])


def ids(*keys: str) -> tuple[str, ...]:
    return tuple(key_id(key) for key in read_keys(keys))


def test_all_three_sources_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{C}\n\n")
    settings = Settings(
        secret_key=A, secret_key_command=python(f"print('{B}')"), secret_key_file=file
    )
    assert read_keyring(settings).ids == ids(A, B, C)


def test_a_command_gives_several_keys_and_runs_without_a_shell(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = python(f"print('{A}'); print('{B}')") + f" ; touch {made}"
    assert read_keyring(Settings(data_dir=tmp_path, secret_key_command=command)).ids == ids(A, B)
    assert not made.exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (python("raise SystemExit(3)"), "code 3"),
        (python("pass"), "printed no key"),
        (python("print('not a key')"), "expected 32 bytes"),
        (python("import sys; sys.stdout.buffer.write(bytes([255]))"), "something else"),
        ("/no/such/program", "cannot run it"),
        ("'open quote", "quotes"),
    ],
)
def test_a_command_that_gives_no_key_is_refused_without_its_output(
    command: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(Misconfigured, match=reason) as refused:
        read_keyring(Settings(data_dir=tmp_path, secret_key_command=command))
    assert "not a key" not in str(refused.value)


def test_a_command_that_hangs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sources, "COMMAND_SECONDS", 0.2)
    command = python("import threading; threading.Event().wait()")
    with pytest.raises(Misconfigured, match="did not end"):
        read_keyring(Settings(data_dir=tmp_path, secret_key_command=command))


def test_a_file_that_is_named_must_be_there_and_readable(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="not found"):
        read_keyring(Settings(secret_key_file=tmp_path / "none"))
    with pytest.raises(Misconfigured, match="cannot read"):
        read_keyring(Settings(secret_key_file=tmp_path))
    assert read_keyring(Settings(data_dir=tmp_path)).ids == ()


def test_apex_up_makes_a_key_once_and_hands_its_place_on(tmp_path: Path) -> None:
    settings, environment = Settings(data_dir=tmp_path), dict[str, str]()
    _secret_key(settings, environment)
    first = read_keyring(settings).ids
    assert len(first) == 1
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    _secret_key(settings, environment)
    assert read_keyring(settings).ids == first
    assert read_keyring(Settings(secret_key_file=environment["APEX_SECRET_KEY_FILE"])).ids == first


@pytest.mark.parametrize(
    "source", [{"secret_key": A}, {"secret_key_command": "keys"}, {"secret_key_file": "keys"}]
)
def test_apex_up_makes_no_key_where_a_setting_names_one(
    source: dict[str, Any], tmp_path: Path
) -> None:
    environment: dict[str, str] = {}
    _secret_key(Settings(data_dir=tmp_path, **source), environment)
    assert not (tmp_path / "secret.key").exists() and not environment


def test_a_key_for_one_purpose_opens_nothing_of_another() -> None:
    keys = Keyring(read_keys([A]))
    one, other = keys.for_purpose("one"), keys.for_purpose("other")
    assert one.ids == other.ids == keys.ids
    sealed = one.seal(b"value", bound=b"name")
    assert one.open(one.first, sealed, bound=b"name", subject="it") == b"value"
    for ring, bound in ((other, b"name"), (keys, b"name"), (one, b"another name")):
        with pytest.raises(Misconfigured, match="does not match its seal"):
            ring.open(ring.first, sealed, bound=bound, subject="it")
