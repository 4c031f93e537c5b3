"""Where the installation's keys come from: a setting, a command, a file."""

from __future__ import annotations

import shlex
import subprocess

from apex_memory.config import Settings
from apex_memory.errors import Misconfigured
from apex_memory.sealing import Keyring, read_keys

COMMAND_SECONDS = 30.0
KEY_FILE = "secret.key"
"""In the data folder; `apex up` creates it."""


def read_keyring(settings: Settings) -> Keyring:
    """Return the keys of the installation; none where no source names any. The command is run, which may take seconds.

    Raises `Misconfigured` for a source that fails and for a text that is not a key.
    """
    return Keyring(read_keys(secret_keys(settings)))


def secret_keys(settings: Settings) -> list[str]:
    """Return the keys as text: the setting `secret_key` first, then what the command prints, then the lines of the key file."""
    return [
        settings.secret_key.get_secret_value(),
        *_printed(settings.secret_key_command),
        *_lines(settings),
    ]


def names_a_key(settings: Settings) -> bool:
    """Return whether a setting names where the keys come from, so that `apex up` need not make one."""
    return bool(
        settings.secret_key.get_secret_value()
        or settings.secret_key_command
        or settings.secret_key_file
    )


def _lines(settings: Settings) -> list[str]:
    file = settings.secret_key_file or settings.data_dir / KEY_FILE
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        if settings.secret_key_file is None:
            return []
        raise Misconfigured(
            f"secret_key_file: {file} not found", remedy="make a key with `apex secrets key`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(
            f"secret_key_file: cannot read {file} ({type(error).__name__})",
            remedy="check its path, its owner and its mode",
        ) from None


def _printed(command: str) -> list[str]:
    """Return the lines that the command prints. Its standard error is that of this process, and never part of an error here."""
    if not command:
        return []
    try:
        result = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=COMMAND_SECONDS,
            check=True,
        )
        lines = result.stdout.decode("ascii").splitlines()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Misconfigured(
            f"secret_key_command: {_reason(error)}",
            remedy="run the command by hand as the user who runs Apex: it must print a key a line",
        ) from None
    if not any(line.strip() for line in lines):
        raise Misconfigured(
            "secret_key_command: it printed no key",
            remedy="run the command by hand as the user who runs Apex: it must print a key a line",
        )
    return lines


def _reason(error: Exception) -> str:
    """Return why the command gave no keys, without what it printed."""
    match error:
        case subprocess.CalledProcessError():
            return f"it ended with code {error.returncode}"
        case subprocess.TimeoutExpired():
            return f"it did not end within {COMMAND_SECONDS:g} s"
        case OSError():
            return f"cannot run it ({error.strerror})"
        case UnicodeDecodeError():
            return "it printed something else than keys in base64"
        case _:
            return "not a command line (quotes are not closed)"
