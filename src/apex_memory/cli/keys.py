"""`apex keys`: the API keys of the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from apex_memory.cli.client import gateway
from apex_memory.cli.output import Json, ago, say, show_json, show_table

app = typer.Typer(help="API keys: list, create, revoke.", no_args_is_help=True)


@app.command("list")
def list_keys(json: Json = False) -> None:
    """List keys, without their secrets.

    Example: apex keys list
    """
    with gateway() as api:
        keys = api.call("GET", "/v1/keys")
    if json:
        show_json(keys)
        return
    show_table(
        "API keys",
        ("id", "name", "scopes", "created", "last used", "revoked"),
        [
            (
                k["id"],
                k["name"],
                " ".join(k["scopes"]),
                ago(k["created_at"]),
                ago(k["used_at"]),
                ago(k["revoked_at"]),
            )
            for k in keys["keys"]
        ],
        empty="No keys.",
        free=("name",),
    )


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", "-s", help="ingest, read or admin; may be repeated. Without it: read."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Create a key. It is shown once; only its digest is stored.

    Example: apex keys create "support agent" --scope read --scope ingest
    """
    with gateway() as api:
        key = api.call("POST", "/v1/keys", json={"name": name, "scopes": scope or ["read"]})
    if json:
        show_json(key)
        return
    say((key["key"], "bold"))
    about = f"id {key['id']}, scopes {' '.join(key['scopes'])}. It is not shown again."
    say((about, "dim"), stderr=True)


@app.command("revoke")
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, from `apex keys list`.")],
    json: Json = False,
) -> None:
    """Revoke a key at once.

    Example: apex keys revoke k3f9a2
    """
    with gateway() as api:
        api.call("DELETE", f"/v1/keys/{id}")
    if json:
        show_json({"id": id, "revoked": True})
    else:
        say(f"Key {id} is revoked.")
