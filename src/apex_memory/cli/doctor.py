"""`apex doctor`: check the whole stack, and name a remedy for every problem."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import httpx2
import typer

from apex_memory.cli.client import Gateway
from apex_memory.cli.output import Json, ago, duration, say, show_json
from apex_memory.client.location import api_key, gateway_url
from apex_memory.config import Settings, load_settings
from apex_memory.credentials.key_sources import read_keyring
from apex_memory.disk_space import disk_space, in_bytes
from apex_memory.engines.cards import running_processes
from apex_memory.engines.state import Stack, read_stack
from apex_memory.errors import ApexError
from apex_memory.host_names import host_name, is_loopback
from apex_memory.model import now
from apex_memory.tls import expiry

# Half-open (0.5) too: while a probe of a store that hangs is under way, its breaker is no less open.
OPEN_BREAKER = re.compile(r'^apex_breaker_open\{store="(\w+)"\} (?:1|1\.0|0\.5)$', re.MULTILINE)
DELAY = re.compile(r"^apex_process_delay_seconds (\S+)$", re.MULTILINE)
WORKERS = ("worker", "bulk")
METRICS_SECONDS = 10.0  # a worker on a slow machine takes some to show its metrics

LAG_SECONDS = 300  # age of the oldest unfinished event, above which `doctor` mentions it
# From these values on `doctor` calls something slow. Usual are a few milliseconds late, and round trips of one or two.
SLOW_DELAY = 0.1  # average seconds that a process runs late
SLOW_MILLISECONDS = 500  # of a store's round trip
MUCH_THROTTLED = 0.25  # share of time in which a limit stops processes
MUCH_PRESSURE = 0.5  # share of time in which programs wait for a processor
FETCHING = ("pull:", "follow:", "backfill:")  # workflows that call a vendor
NEAR_EXPIRY = timedelta(days=14)  # of a certificate, from which on `doctor` mentions it
RECENT = timedelta(
    hours=1
)  # the time of which `doctor` mentions lost webhooks and differing copies
LEAST_DISK = 1_000_000_000  # bytes free, below which `doctor` warns


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `apex doctor`. `good` passes, `bad` fails the command, `note` only informs."""

    what: str
    state: Literal["good", "bad", "note"]
    detail: str
    remedy: str = ""


def doctor(json: Json = False) -> None:
    """Check the whole stack and print a remedy for every problem. The exit code is 1 if there is one.

    Example: apex doctor
    """
    findings = list(examine())
    if json:
        show_json([asdict(finding) for finding in findings])
    else:
        marks = {"good": ("✓", "green"), "bad": ("✗", "red"), "note": ("!", "yellow")}
        for finding in findings:
            say(marks[finding.state], f" {finding.what}: {finding.detail}", hanging=2)
            if finding.remedy:
                say((f"→ {finding.remedy}", "dim"), indent=4)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Yield findings, from the settings outwards. Stops where further checks are impossible."""
    # Not at the top: it loads the packages of all sources.
    from apex_memory.sources import registry

    try:
        settings = load_settings()
        registry.load(settings.sources, settings.source_path)
        read_keyring(settings)
    except ApexError as error:
        yield Finding("settings", "bad", str(error), error.remedy)
        return
    yield Finding("settings", "good", f"data in {settings.data_dir}")
    yield from _disk(settings)
    yield from _processes(settings)
    yield from _certificate_file(settings)
    try:
        url = gateway_url(settings)
    except ApexError as error:
        yield Finding("gateway", "bad", str(error), error.remedy)
        return
    yield from _plain_http(settings, url)
    yield from _strangers(settings)
    try:
        with Gateway(url, api_key(settings), settings.connections_tls) as api:
            report = api.call("GET", "/v1/status")
            sources = api.call("GET", "/v1/sources")["sources"]
            mirrors = api.call("GET", "/v1/mirror")["mirrors"]
            secrets = api.call("GET", "/v1/secrets")["secrets"]
            shadows = list(_shadow_facts(api))
    except ApexError as error:
        yield Finding("gateway", "bad", str(error), error.remedy)
        return
    yield Finding("gateway", "good", f"responds at {url}")
    yield from _certificate_in_use(settings, report["certificate_expires_at"])
    yield from _machine(report["machine"])
    yield from _workers(settings)
    yield from _stores_and_events(report)
    yield from _reranker(report)
    yield from _builds(report)
    yield from _open_ui(read_stack(settings.data_dir), report["temporal"]["ui"])
    yield from _sources(sources)
    yield from _mirrors(mirrors)
    yield from _secrets(secrets)
    yield from _shadows(shadows)


def _disk(settings: Settings) -> Iterator[Finding]:
    """Yield the space of each volume that data lie on. A volume of an engine's own has its name."""
    place = settings.data_dir if settings.data_dir.exists() else settings.data_dir.absolute().parent
    volumes = {place.stat().st_dev: ("disk", place)}
    for folder in sorted(place.iterdir()) if place == settings.data_dir else ():
        if folder.is_dir():
            volumes.setdefault(folder.stat().st_dev, (f"disk of {folder.name}", folder))
    for name, folder in volumes.values():
        space = disk_space(folder)
        detail = f"{in_bytes(space.free)} free of {in_bytes(space.total)} at {folder}"
        if space.is_low():
            yield Finding(
                name,
                "bad",
                f"{detail}, and {in_bytes(space.reserve)} are needed: events wait, or are refused with 503",
                "free space there, or enlarge the volume; everything continues automatically then",
            )
        elif space.free < min(LEAST_DISK, space.total / 4):
            yield Finding(
                name,
                "bad",
                f"{detail}: it is nearly full",
                f"free space there; below {in_bytes(space.reserve)} the graph and the vectors refuse writes",
            )
        else:
            yield Finding(name, "good", detail)


def _processes(settings: Settings) -> Iterator[Finding]:
    stack = read_stack(settings.data_dir)
    if stack is None:
        yield Finding(
            "processes",
            "note",
            f"no stack runs from {settings.data_dir}",
            "start it with `apex up`",
        )
        return
    for child in stack.children.values():
        log = settings.data_dir / "log" / f"{child.name}.log"
        if not child.pid:
            yield Finding(
                child.name,
                "bad",
                f"is down ({child.last_exit or 'starting'})",
                f"it is restarted automatically; see {log}",
            )
        elif child.restarts:
            yield Finding(
                child.name,
                "note",
                f"was restarted {child.restarts} times, last exit {child.last_exit}",
                f"see {log}",
            )
        else:
            yield Finding(child.name, "good", f"{child.version or 'runs'}, pid {child.pid}")


def _certificate_file(settings: Settings) -> Iterator[Finding]:
    """Yield how long the certificate in the file of the settings is valid."""
    file = settings.tls_certificate_file
    if file is None:
        return
    what = "certificate file"
    try:
        until = expiry(file)
    except ApexError as error:
        yield Finding(what, "bad", str(error), error.remedy)
        return
    yield _validity(what, until, f"write a new one to {file}: the gateway uses it within a second")


def _certificate_in_use(settings: Settings, expires_at: str | None) -> Iterator[Finding]:
    """Yield how long the certificate that the gateway shows is valid, and whether it is that of the file."""
    if expires_at is None:
        return
    what, until = "certificate", datetime.fromisoformat(expires_at)
    log = "see `certificate not renewed` in the log of the gateway; it tries again every second"
    file = settings.tls_certificate_file
    with suppress(ApexError):  # `_certificate_file` has named what is wrong with the file
        if file and expiry(file) != until:
            yield Finding(
                what,
                "bad",
                f"the gateway shows one that expires at {until:%Y-%m-%d %H:%M} UTC, not that of {file}",
                log,
            )
            return
    yield _validity(what, until, "renew the files that the gateway's settings name")


def _validity(what: str, until: datetime, remedy: str) -> Finding:
    if until <= now():
        return Finding(what, "bad", f"expired at {until:%Y-%m-%d %H:%M} UTC", remedy)
    if until - now() < NEAR_EXPIRY:
        return Finding(what, "note", f"expires at {until:%Y-%m-%d %H:%M} UTC", remedy)
    return Finding(what, "good", f"valid until {until:%Y-%m-%d} UTC")


def _plain_http(settings: Settings, url: str) -> Iterator[Finding]:
    """Yield where keys and content cross a network unencrypted: into the gateway of these settings, or from here to it."""
    if settings.scheme == "http" and not is_loopback(settings.host):
        yield Finding(
            "plain HTTP",
            "note",
            f"the gateway listens on {settings.host} without TLS: keys and content can be read on the network",
            "set tls_certificate_file and tls_key_file, or let only a reverse proxy with TLS reach this port",
        )
    elif url.startswith("http:") and not is_loopback(host_name(url.partition("://")[2])):
        yield Finding(
            "plain HTTP",
            "note",
            f"this command sends its API key to {url} without TLS",
            "give the gateway a certificate, and write the address with https://",
        )


def _strangers(settings: Settings) -> Iterator[Finding]:
    """Yield whether a gateway of this data folder may answer callers from the internet without a key."""
    processes = {card.process for card in running_processes(settings.data_dir)}
    if settings.admits_strangers and "gateway" in processes:
        yield Finding(
            "local callers",
            "note",
            f"the gateway is public at {settings.url}, and /ops and /metrics need no key from this machine: a proxy here"
            " can make strangers look local",
            "set local_without_key = false",
        )


def is_slow(machine: dict[str, Any]) -> bool:
    """Return whether processes run late, or a limit of processor time stops them."""
    throttled: float = machine["throttled"] or 0
    return machine["delay_seconds"] > SLOW_DELAY or throttled > MUCH_THROTTLED


def describe_load(machine: dict[str, Any]) -> str:
    """Return in words how late the gateway runs, and why where the system shows it."""
    causes = []
    if (machine["throttled"] or 0) > MUCH_THROTTLED:
        causes.append(
            f"a limit of processor time (of a container or cgroup) stops it {machine['throttled']:.0%} of the time"
        )
    if (machine["pressure"] or 0) > MUCH_PRESSURE:
        causes.append(
            f"programs waited for one of {machine['processors']} processors in {machine['pressure']:.0%} of the last minute"
        )
    late = f"the gateway runs {duration(machine['delay_seconds'])} late"
    return "; ".join([late, *causes])


def _machine(machine: dict[str, Any]) -> Iterator[Finding]:
    """Yield whether processes get the processor time that they need."""
    if not is_slow(machine):
        yield Finding(
            "machine", "good", f"{machine['processors']} processors, the gateway runs on time"
        )
        return
    remedy = "end other programs, or give this machine more processors"
    if (machine["throttled"] or 0) > MUCH_THROTTLED:
        remedy = "raise the limit of processor time of the container or cgroup"
    yield Finding(
        "machine",
        "note",
        f"slow: {describe_load(machine)}",
        f"{remedy}; nothing is lost meanwhile, but everything takes longer",
    )


def _workers(settings: Settings) -> Iterator[Finding]:
    """Yield the workers of this data folder that run late, and the stores whose circuit breaker is open in one."""
    for card in running_processes(settings.data_dir):
        if card.process not in WORKERS:
            continue
        try:
            metrics = httpx2.get(card.metrics, timeout=METRICS_SECONDS).text
        except httpx2.TimeoutException:
            yield Finding(
                f"worker {card.process}",
                "bad",
                f"hangs: its metrics do not come within {METRICS_SECONDS:g} s",
                f"see its log and `machine`; `kill -9 {card.pid}` ends it if it stays so: what it held is processed again, and `apex up` starts it anew",
            )
            continue
        except httpx2.HTTPError:
            continue  # `_processes` reports a worker that does not run
        delay = DELAY.search(metrics)
        if delay and float(delay[1]) > SLOW_DELAY:
            yield Finding(
                f"worker {card.process}",
                "note",
                f"slow: runs {duration(float(delay[1]))} late, so that every step takes longer",
                "see `machine`; if that is on time, `apex events` shows which events it works on",
            )
        for store in OPEN_BREAKER.findall(metrics):
            yield Finding(
                f"breaker {store}",
                "bad",
                f"is open in the worker `{card.process}`: calls to {store} failed repeatedly",
                f"it closes automatically when {store} responds; see its log",
            )


def _stores(stores: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for store in stores:
        if store["state"] == "ready" and (store["milliseconds"] or 0) > SLOW_MILLISECONDS:
            yield Finding(
                f"store {store['name']}",
                "note",
                f"{store['version']}, slow: a round trip takes {duration(store['milliseconds'] / 1000)}",
                "see `machine` for the load; for a store on another machine check that machine and the network",
            )
        elif store["state"] == "ready":
            yield Finding(f"store {store['name']}", "good", store["version"])
        else:
            remedy = "events wait for it, and searches report it as degraded; check its address and its log"
            if store["name"] == "payloads":
                remedy = f"{store['reason']}; large events wait or are refused with 503, others go on: check payload_store, its endpoint and credentials"
            if store["state"] == "recovering":
                remedy = "it restarted and is being checked against PostgreSQL; no action is needed"
            yield Finding(f"store {store['name']}", "bad", store["state"], remedy)


def _stores_and_events(report: dict[str, Any]) -> Iterator[Finding]:
    yield from _stores(report["stores"])
    temporal = report["temporal"]
    if temporal["reachable"] and temporal["milliseconds"] > SLOW_MILLISECONDS:
        yield Finding(
            "temporal",
            "note",
            f"{temporal['address']}, slow: a response takes {duration(temporal['milliseconds'] / 1000)}",
            "see `machine` for the load; what Temporal does not start in time, the workers drain directly",
        )
    elif temporal["reachable"]:
        yield Finding("temporal", "good", temporal["address"])
    else:
        yield Finding(
            "temporal",
            "bad",
            f"{report['temporal']['address']} does not respond",
            "events land, and the direct path processes them meanwhile; start it, or check APEX_TEMPORAL",
        )
    if since := temporal["fallback_since"]:
        yield Finding(
            "fallback",
            "note",
            f"in force for {ago(since)}: the direct path processes every source; backfills and replays wait",
            "nothing to do here: it ends by itself when Temporal responds",
        )
    for workflow in report["temporal"]["failing"]:
        remedy = "see the worker's log; its events are processed without Temporal meanwhile"
        if workflow["id"].startswith(FETCHING):
            remedy = "it is retried automatically; `apex sources` shows the error of its source"
        yield Finding(
            f"workflow {workflow['id']}",
            "bad",
            f"fails: attempt {workflow['attempt']} of its current {workflow['what']}",
            remedy,
        )
    if parked := report["parked"]:
        yield Finding(
            "parked",
            "note",
            f"{parked} events wait for a store",
            "they continue automatically when it responds again",
        )
    if report["dead_letters"]:
        yield Finding(
            "dead letters",
            "note",
            f"{report['dead_letters']} are open",
            "see `apex dead-letters list` for the reasons, then `redrive` or `discard` them",
        )


def _reranker(report: dict[str, Any]) -> Iterator[Finding]:
    """Yield whether the reranker works, if there is one."""
    reranker = report["reranker"]
    if reranker and reranker["state"] == "ready":
        yield Finding("reranker", "good", reranker["address"])
    elif reranker:
        yield Finding(
            "reranker",
            "bad",
            f"{reranker['reason'] or reranker['address']} (breaker {reranker['breaker']})",
            "searches keep their own order meanwhile and say so (`degraded`); see the server's log, and the settings `reranker…`",
        )


def _builds(report: dict[str, Any]) -> Iterator[Finding]:
    """Yield that no worker of the current build runs."""
    if absent := report["absent_build"]:
        yield Finding("current build", "bad", absent["detail"], absent["remedy"])


def _open_ui(stack: Stack | None, url: str | None) -> Iterator[Finding]:
    """Yield a note while the UI of the embedded Temporal runs, which has no sign-in."""
    if url and stack and "temporal" in stack.children:
        yield Finding(
            "temporal UI",
            "note",
            f"runs at {url} without a sign-in: every user of this machine can end workflows there",
            "start without `--ui` and `temporal_ui` when it is not needed",
        )


def _sources(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        name = f"source {row['name']}"
        if row["healed_at"] and datetime.fromisoformat(row["healed_at"]) > now() - RECENT:
            yield Finding(
                f"{name} webhooks",
                "note",
                f"some were lost; pulls brought the events, the last {ago(row['healed_at'])}; {row['healed']} in all",
                "memory is complete; look at the deliveries in the vendor's console, and for refusals in `apex logs gateway`",
            )
        if row["state"] == "failing":
            yield Finding(
                name,
                "bad",
                row["error"].removeprefix(f"{row['name']}: "),
                "it is retried automatically; see `apex sources`",
            )
        elif row["state"] == "stalled":
            yield Finding(
                name,
                "bad",
                f"{row['backlog']} events are ready and nobody has worked on them for {duration(row['stalled'])}",
                "check that a worker runs (`apex status`) and read its log",
            )
        elif (row["lag"] or 0) > LAG_SECONDS and row["state"] != "paused":
            yield Finding(
                name,
                "note",
                f"the oldest of {row['backlog']} unfinished events arrived {duration(row['lag'])} ago",
                "it is being worked on; see `apex sources` for the progress",
            )
        elif row["state"] in ("paused", "disabled"):
            yield Finding(
                name, "note", row["state"], f"`apex sources {_UNDO[row['state']]} {row['name']}`"
            )


def _secrets(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Yield the stored secrets that no configured key opens: their sources refuse webhooks, and cannot pull."""
    names = [row["name"] for row in rows if not row["readable"]]
    if names:
        yield Finding(
            "secrets",
            "bad",
            f"sealed with an encryption key that is not configured: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}",
            "configure that key (`secret_key`, or secret.key in the data folder), or set them again with `apex secrets set`",
        )


def _mirrors(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Yield the mirrors whose target fails, which has dead letters, or which is no longer in the settings."""
    for row in rows:
        name = f"mirror {row['source']}"
        if row["waiting"] and not row["url"]:
            yield Finding(
                name,
                "bad",
                f"{row['waiting']} webhooks wait, and the settings name no target",
                f"set sources.{row['source']}.mirror_url again, or `apex mirror discard --source {row['source']} --waiting`",
            )
        elif row["failing_since"]:
            yield Finding(
                name,
                "bad",
                f"{row['last_error']}; {row['waiting']} webhooks wait",
                f"it is retried automatically; check {row['url']}. What waits too long becomes a dead letter: `apex mirror list`",
            )
        elif row["url"]:
            yield Finding(name, "good", f"{row['url']}, {row['waiting']} webhooks wait")
        if row["dead"]:
            yield Finding(
                f"{name} dead letters",
                "note",
                f"{row['dead']} webhooks were not taken by the target: {row['last_error']}",
                f"see `apex mirror list --source {row['source']}`, then `redrive` or `discard` them",
            )


_UNDO = {"paused": "resume", "disabled": "enable"}


def _shadow_facts(api: Gateway) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each shadow that is on has compared in the last hour, by the name that `apex rollout` knows."""
    params = {"since": (now() - RECENT).isoformat(), "limit": 1}
    for row in api.call("GET", "/v1/rollouts")["rollouts"]:
        if row["shadow"]:
            name = row["subject"].removeprefix("source:")
            yield name, api.call("GET", f"/v1/rollouts/{name}/report", params=params)["facts"]


def _shadows(shadows: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[Finding]:
    """Yield the shadows whose copies differ from what was published, or failed."""
    for name, facts in shadows:
        if facts["mismatched"] or facts["failed"]:
            fields = ", ".join(list(facts["by_field"])[:3])
            yield Finding(
                f"shadow of {name}",
                "note",
                f"in the last hour {facts['mismatched']} of {facts['compared']} copies differ"
                + (f" ({fields})" if fields else "")
                + f", and {facts['failed']} failed",
                f"see `apex rollout report {name}`; accept what is meant with `apex rollout accept {name} FIELD`",
            )
        else:
            detail = f"{facts['compared']} copies compared in the last hour, no difference"
            yield Finding(f"shadow of {name}", "good", detail)
