"""What `[sources.edi]` may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from apex_memory.sources.base import PulledSettings


class EdiSettings(PulledSettings):
    """`[sources.edi]`"""

    inbound_folder: Path | None = Field(
        None, description="Local folder into which partners' files are put."
    )
    archive_folder: Path | None = Field(
        None,
        description="Local folder for files that were picked up; must not be `inbound_folder`.",
    )
    outbound_folder: Path | None = Field(
        None, description="Local folder for the replies (997) to files from `inbound_folder`."
    )
    sftp_host: str = Field("", description="SFTP server to pick files up from.")
    sftp_port: int = Field(22, gt=0, lt=65_536, description="Its port.")
    sftp_user: str = Field("", description="User name there.")
    sftp_password: SecretStr = Field(SecretStr(""), description="Password, where there is no key.")
    sftp_key: SecretStr = Field(
        SecretStr(""), description="Private key (OpenSSH or PEM), the whole text of its file."
    )
    sftp_key_passphrase: SecretStr = Field(
        SecretStr(""), description="Passphrase of `sftp_key`, if it has one."
    )
    sftp_known_hosts: str = Field(
        "",
        description="The server's key as lines of a known_hosts file, confirmed by the partner. Any other key is refused.",
    )
    sftp_inbound: str = Field("inbound", description="Folder there with the files for us.")
    sftp_archive: str = Field("archive", description="Folder there for files that were picked up.")
    sftp_outbound: str = Field("outbound", description="Folder there for our replies (997).")
    settle_seconds: float = Field(
        10,
        ge=0,
        description="How long the size and time of a file must be unchanged, over two listings at least, before it is picked up.",
    )
    acknowledge: bool = Field(True, description="Reply to picked-up files by 997.")
    test_interchanges: Literal["apart", "take"] = Field(
        "apart",
        description="What to do with interchanges that are marked as a test (ISA15 = T). `apart`: memory notes that they came, without their content. `take`: like real ones, under keys of their own.",
    )
    own_ids: list[str] = Field(
        default=[],
        description="Our own interchange ids (ISA06): copies of what we sent are taken in, and get no 997.",
    )
