"""Settings whose values stand in files, as secrets of containers do."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_memory.config import file_variables, load_settings
from apex_memory.errors import Misconfigured

URL = "postgresql://apex:p%40ss@db/apex"


def test_a_file_gives_the_value_without_the_line_break_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "documents").write_text(URL + "\n")
    (tmp_path / "key").write_text(" spaces count \r\n")
    monkeypatch.setenv("APEX_DOCUMENTS_FILE", str(tmp_path / "documents"))
    monkeypatch.setenv("APEX_API_KEY_FILE", str(tmp_path / "key"))
    settings = load_settings()
    assert settings.documents == URL
    assert settings.api_key.get_secret_value() == " spaces count "


def test_a_file_comes_before_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apex.toml").write_text('documents = "postgresql://file/apex"\nport = 1\n')
    (tmp_path / "documents").write_text(URL)
    monkeypatch.setenv("APEX_SETTINGS_FILE", str(tmp_path / "apex.toml"))
    monkeypatch.setenv("APEX_DOCUMENTS_FILE", str(tmp_path / "documents"))
    settings = load_settings()
    assert (settings.documents, settings.port) == (URL, 1)


def test_a_settings_file_that_is_named_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APEX_SETTINGS_FILE", str(tmp_path / "apex.tml"))
    with pytest.raises(Misconfigured, match=r"APEX_SETTINGS_FILE: .*apex\.tml does not exist"):
        load_settings()
    monkeypatch.delenv("APEX_SETTINGS_FILE")
    monkeypatch.chdir(tmp_path)
    load_settings()  # `apex.toml` of the folder may be missing


@pytest.mark.parametrize("content", [None, b"\xff\xfe", "folder"])
def test_a_file_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str | None
) -> None:
    file = tmp_path / "documents"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    monkeypatch.setenv("APEX_DOCUMENTS_FILE", str(file))
    with pytest.raises(Misconfigured, match="APEX_DOCUMENTS_FILE"):
        load_settings()


def test_a_setting_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "documents").write_text(URL)
    monkeypatch.setenv("APEX_DOCUMENTS_FILE", str(tmp_path / "documents"))
    monkeypatch.setenv("APEX_DOCUMENTS", URL)
    with pytest.raises(Misconfigured, match="APEX_DOCUMENTS is set too"):
        load_settings()


def test_a_wrong_value_in_a_file_is_refused_without_showing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "documents").write_text("mysql://secret@db")
    monkeypatch.setenv("APEX_DOCUMENTS_FILE", str(tmp_path / "documents"))
    with pytest.raises(Misconfigured, match="documents: must be") as refused:
        load_settings()
    assert "secret" not in str(refused.value)


def test_settings_that_are_files_keep_their_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = file_variables()
    assert "APEX_SECRET_KEY_FILE" not in variables
    assert variables["APEX_TEMPORAL_CLIENT_KEY_FILE_FILE"] == "temporal_client_key_file"
    monkeypatch.setenv("APEX_SECRET_KEY_FILE", "/run/secrets/keys")
    assert load_settings().secret_key_file == Path("/run/secrets/keys")


def test_a_file_with_the_address_of_temporal_counts_as_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporal's own variables for another server must not reach the one that the file names."""
    (tmp_path / "temporal").write_text("temporal:7233/apex")
    monkeypatch.setenv("APEX_TEMPORAL_FILE", str(tmp_path / "temporal"))
    monkeypatch.setenv("TEMPORAL_ADDRESS", "elsewhere:7233")
    monkeypatch.setenv("TEMPORAL_API_KEY", "key for elsewhere")
    settings = load_settings()
    assert settings.temporal == "temporal:7233/apex"
    assert settings.temporal_api_key.get_secret_value() == ""


def test_an_unknown_setting_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEX_DOCUMENT_FILE", "/run/secrets/documents")
    with pytest.raises(Misconfigured, match="APEX_DOCUMENT_FILE: unknown setting"):
        load_settings()


@pytest.mark.parametrize("name", ["APEX_SOURCES", "APEX_ROLLOUT__STEPS"])
def test_a_value_that_is_no_json_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "foo")
    with pytest.raises(Misconfigured, match=name.split("_")[1].lower()):
        load_settings()


def test_a_file_that_is_not_utf_8_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apex.toml").write_bytes(b'url = "\xff"\n')
    monkeypatch.setenv("APEX_SETTINGS_FILE", str(tmp_path / "apex.toml"))
    with pytest.raises(Misconfigured, match=r"apex\.toml: it is not UTF-8"):
        load_settings()


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match="no folder"):
        load_settings(data_dir=tmp_path / "file")
