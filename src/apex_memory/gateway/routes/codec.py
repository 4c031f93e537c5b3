"""`/codec`: opens and seals payloads for Temporal's web UI and command line, by their convention for codec servers.

Both send `POST /decode` and `/encode` with a list of payloads in protobuf's JSON. A program sends an API key of scope
`admin`. A browser cannot: it signs in once at `/codec/sign-in`, and then sends a cookie, which is accepted here alone
and only from pages of the UI's own origin.
"""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from google.protobuf import json_format
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from temporalio.api.common.v1 import Payload, Payloads

from apex_memory.config import Settings
from apex_memory.credentials.api_keys import ValidKey
from apex_memory.errors import Conflict, Forbidden, Misconfigured, Rejected, Unauthorized
from apex_memory.flows.temporal.codec import SealingCodec
from apex_memory.gateway.codec_session import PATH, SECONDS, Sessions, ui_origin
from apex_memory.gateway.dependencies import (
    GatewayDep,
    basic_password,
    credentials,
    gateway_of,
    presented,
)

POLICY = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
HEADERS = ("authorization", "content-type", "x-api-key", "x-namespace")

router = APIRouter(prefix=PATH, include_in_schema=False)


class CodecAccess:
    """Lets pages of the UI's origin, and of no other, read the answers of `/codec`."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        origin = ui_origin(settings)
        self._shared = CORSMiddleware(
            app,
            allow_origins=[origin] if origin else [],
            allow_methods=["POST"],
            allow_headers=HEADERS,
            allow_credentials=True,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shared = scope["type"] == "http" and scope["path"].startswith(f"{PATH}/")
        await (self._shared if shared else self._app)(scope, receive, send)


async def _admin(request: Request) -> ValidKey:
    """Return the key of the request, or of its cookie. Raises `Unauthorized` or `Forbidden`."""
    return await gateway_of(request).keys.check(credentials(request), "admin")


Operator = Annotated[ValidKey, Depends(_admin)]


@router.post("/decode")
async def decode(request: Request, gateway: GatewayDep, key: Operator) -> Response:
    """Open payloads. What no key of this installation opens comes back as it is."""
    codec = _codec(gateway.temporal.data_converter.payload_codec)
    opened = [await _opened(codec, payload) for payload in await _payloads(request)]
    return _response(opened)


@router.post("/encode")
async def encode(request: Request, gateway: GatewayDep, key: Operator) -> Response:
    """Seal payloads, for example the input of a workflow that is started by hand."""
    codec = _codec(gateway.temporal.data_converter.payload_codec)
    return _response(await codec.encode(await _payloads(request)))


@router.get("/sign-in")
async def sign_in(request: Request, gateway: GatewayDep) -> HTMLResponse:
    """Ask the browser for an admin key as the password of HTTP Basic, and hand it a cookie for `/codec`."""
    key = basic_password(request) or presented(request)
    try:
        await gateway.keys.check(key, "admin")
    except Forbidden:
        raise
    except Unauthorized as error:
        challenge = {"WWW-Authenticate": 'Basic realm="apex codec", charset="UTF-8"'}
        raise HTTPException(401, str(error), challenge) from None
    assert key is not None
    try:
        cookie = Sessions(gateway.app.keyring).cookie_of(key)
    except Misconfigured as error:
        raise Conflict(str(error), remedy=error.remedy) from None
    origin = ui_origin(gateway.app.settings)
    response = HTMLResponse(_page(origin), headers={"Content-Security-Policy": POLICY})
    response.set_cookie(
        Sessions.NAME,
        cookie,
        max_age=SECONDS,
        path=PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.get("/sign-out")
async def sign_out() -> HTMLResponse:
    response = HTMLResponse(
        "<!doctype html><p>Signed out.", headers={"Content-Security-Policy": POLICY}
    )
    response.delete_cookie(Sessions.NAME, path=PATH)
    return response


def _page(origin: str) -> str:
    if not origin:
        return "<!doctype html><p>Signed in, but the setting <code>temporal_ui</code> names no UI that may use it."
    address = escape(origin)
    return f'<!doctype html><p>Signed in for {SECONDS // 3600} hours. <a href="{address}">{address}</a> can show payloads now.'


def _codec(codec: object) -> SealingCodec:
    assert isinstance(codec, SealingCodec)  # `connect_by` sets it
    return codec


async def _opened(codec: SealingCodec, payload: Payload) -> Payload:
    """Return a payload opened; as it is where its key is not configured, so that the others of a page are shown."""
    try:
        [opened] = await codec.decode([payload])
    except Misconfigured:
        return payload
    return opened


async def _payloads(request: Request) -> list[Payload]:
    content = Payloads()
    try:
        json_format.Parse(await request.body(), content, ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError):
        raise Rejected(
            "body: not a list of payloads",
            remedy="send JSON of temporal.api.common.v1.Payloads, as Temporal's UI and command line do",
        ) from None
    return list(content.payloads)


def _response(payloads: list[Payload]) -> Response:
    return Response(
        json_format.MessageToJson(Payloads(payloads=payloads), indent=None),
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
