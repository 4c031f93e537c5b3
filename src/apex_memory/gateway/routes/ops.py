"""`/ops`: how the installation works, for people. The same panels as the Grafana dashboards, without Grafana."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from typing import Any

import orjson
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from apex_memory import __version__
from apex_memory.errors import Forbidden, NotFound, Unauthorized
from apex_memory.gateway.dependencies import (
    Gateway,
    GatewayDep,
    basic_password,
    gateway_of,
    needs_no_key,
    presented,
)
from apex_memory.gateway.ops.data import DashboardData, from_prometheus
from apex_memory.gateway.ops.page import POLICY, level, page, written
from apex_memory.gateway.ops.panels import DASHBOARDS, Dashboard
from apex_memory.gateway.read_models.status import absent_build

STATIC = {
    "uPlot.iife.min.js": "text/javascript",
    "uPlot.min.css": "text/css",
    "ops.js": "text/javascript",
    "ops.css": "text/css",
    "icon.svg": "image/svg+xml",
}


async def watcher(request: Request) -> None:
    """Admit programs and browsers on this machine without a key, unless the settings want one, and others with a key of scope `read`.

    A browser elsewhere asks for the key as the password of HTTP Basic; the user name does not matter.
    """
    if needs_no_key(request):
        return
    try:
        await gateway_of(request).keys.check(basic_password(request) or presented(request), "read")
    except Forbidden:
        raise
    except Unauthorized as error:
        raise HTTPException(
            401, str(error), {"WWW-Authenticate": 'Basic realm="apex", charset="UTF-8"'}
        ) from None


router = APIRouter(prefix="/ops", include_in_schema=False)
guarded = [Depends(watcher)]


@router.get("", dependencies=guarded)
async def start() -> RedirectResponse:
    return RedirectResponse("/ops/overview")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Return a script or a style sheet of the page. They hold nothing of the installation and need no key."""
    if name not in STATIC:
        raise NotFound("no such file")
    file = resources.files("apex_memory.gateway.ops") / "static" / name
    return Response(
        file.read_bytes(),
        media_type=STATIC[name],
        headers={"Cache-Control": "max-age=3600"},
    )


@router.get("/data/{name}", dependencies=guarded)
async def show_data(name: str, gateway: GatewayDep) -> Response:
    """Return the data of a dashboard as JSON, for the page's script."""
    return Response(
        orjson.dumps(_as_json(await _data(_dashboard(name), gateway))),
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


@router.get("/{name}", response_class=HTMLResponse, dependencies=guarded)
async def show(name: str, gateway: GatewayDep) -> HTMLResponse:
    """Return the page of a dashboard."""
    dashboard = _dashboard(name)
    absent = await absent_build(gateway.app)
    alarm = f"Events wait: {absent['detail']}. Remedy: {absent['remedy']}" if absent else ""
    html = page(dashboard, await _data(dashboard, gateway), __version__, alarm=alarm)
    headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(html, headers=headers)


def _dashboard(name: str) -> Dashboard:
    for dashboard in DASHBOARDS:
        if dashboard.name == name:
            return dashboard
    names = ", ".join(dashboard.name for dashboard in DASHBOARDS)
    raise NotFound("no such dashboard", remedy=f"dashboards are {names}")


async def _data(dashboard: Dashboard, gateway: Gateway) -> DashboardData:
    url = gateway.app.settings.prometheus_url
    if url:
        return await from_prometheus(dashboard, url)
    return await gateway.ops_data.of(dashboard)


def _as_json(data: DashboardData) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    for item in data.panels:
        panel = item.panel
        last = item.series[0].last if item.series else None
        panels.append(
            {
                "id": panel.id,
                "kind": panel.kind,
                "unit": panel.unit,
                "stacked": panel.stacked,
                "words": panel.words,
                "reason": item.reason,
                "level": level(panel, last),
                "value": written(last, panel.unit, panel.words),
                "times": item.times,
                "series": [asdict(series) for series in item.series],
                "left_out": item.left_out,
            }
        )
    return {"origin": data.origin, "panels": panels}
