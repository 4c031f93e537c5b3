"""`apex secrets`: credentials of sources, stored encrypted in PostgreSQL."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from apex_memory.cli.client import gateway
from apex_memory.cli.output import Json, ago, say, show_json, show_table
from apex_memory.errors import Rejected
from apex_memory.sealing import new_key

app = typer.Typer(
    help="Credentials of sources: set, list, remove. They are never shown.", no_args_is_help=True
)

Source = Annotated[str, typer.Argument(help="The source's name.")]
Setting = Annotated[str, typer.Argument(help="The setting, as in docs/reference/sources.md.")]


@app.command("list")
def list_secrets(json: Json = False) -> None:
    """List secrets by name, without their values.

    Example: apex secrets list
    """
    with gateway() as api:
        response = api.call("GET", "/v1/secrets")
    if json:
        show_json(response)
        return
    show_table(
        "Secrets",
        ("name", "encrypted with", "changed", "by", ""),
        [
            (
                row["name"],
                row["key_id"],
                ago(row["changed_at"]),
                row["changed_by"],
                "" if row["readable"] else Text("its encryption key is missing", "red"),
            )
            for row in response["secrets"]
        ],
        empty="None: credentials come from the settings file and the environment.",
    )


@app.command("set")
def set_secret(
    source: Source,
    setting: Setting,
    also: Annotated[
        bool,
        typer.Option("--list", help="The setting is a list: one value per line, the newest first."),
    ] = False,
    json: Json = False,
) -> None:
    """Set a credential, from standard input or a prompt. It takes effect within a second, without a restart.

    Example: apex secrets set plaid secret < plaid-secret.txt
    """
    if sys.stdin.isatty():
        text = typer.prompt(f"{source}.{setting}", hide_input=True)
    else:
        text = sys.stdin.read()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise Rejected("no value", remedy="send it to standard input, or type it at the prompt")
    value = lines if also else "\n".join(lines)
    with gateway() as api:
        api.call("PUT", f"/v1/secrets/{source}/{setting}", json={"value": value})
    if json:
        show_json({"source": source, "setting": setting, "set": True})
    else:
        say(f"{source}.{setting} is set.")


@app.command("remove")
def remove(source: Source, setting: Setting, json: Json = False) -> None:
    """Remove a credential. The value in the settings file takes effect again.

    Example: apex secrets remove plaid secret
    """
    with gateway() as api:
        api.call("DELETE", f"/v1/secrets/{source}/{setting}")
    if json:
        show_json({"source": source, "setting": setting, "set": False})
    else:
        say(f"{source}.{setting} is removed.")


@app.command("reseal")
def reseal(json: Json = False) -> None:
    """Encrypt all secrets under the first key, and the data keys of sealed payloads.

    Start every process with the new key first, in front of the old one. Safe to repeat. Older keys are still needed
    for large payloads in an object store, as long as these are kept, and for Temporal's histories.

    Example: apex secrets reseal
    """
    with gateway() as api:
        result = api.call("POST", "/v1/secrets/reseal")
    if json:
        show_json(result)
        return
    say(f"{result['resealed']} secrets encrypted under the first key.")
    if result["data_keys"]:
        say(f"{result['data_keys']} data keys of payloads encrypted under the first key.")
    if result["objects"]:
        say(
            ("Keep the older keys", "yellow"),
            f": {result['objects']:,} large payloads in the object store are encrypted under them, and stay so.",
        )
    if result["unreadable"]:
        names = ", ".join(result["unreadable"])
        say(
            f"Not readable with any configured key: {names}. Configure their key, or set them again."
        )


@app.command("key")
def key() -> None:
    """Create a key that encrypts secrets: for APEX_SECRET_KEY, or as the first line of the key file.

    Example: apex secrets key
    """
    say(new_key())
