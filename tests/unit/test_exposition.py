"""Metrics: their names, the addresses at which processes expose them, and labels that strangers cannot grow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pydantic import ValidationError

from apex_memory.config import Settings
from apex_memory.engines.cards import (
    ProcessCard,
    registered,
    running_processes,
    targets,
    write_targets,
)
from apex_memory.gateway.facts import GaugeFamily
from apex_memory.telemetry import FALLBACK, LANDED, metric_rows, touch_metrics
from apex_memory.telemetry.exposition import Address, exposed

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
GONE = 2**22 - 1  # a process id that Linux does not give by default


def scrape(url: str, **headers: str) -> tuple[str, str]:
    """Return the text and the content type of a scrape."""
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=5) as response:
        return response.read().decode(), response.headers["Content-Type"]


def test_a_process_exposes_both_formats_on_its_address() -> None:
    with exposed(Address("127.0.0.1", 0), process="worker") as address:
        text, kind = scrape(address.url)
        assert kind.startswith("text/plain") and "# TYPE apex_fallback_active gauge" in text
        assert "_created" not in text
        text, kind = scrape(address.url, Accept=OPENMETRICS)
        assert kind.startswith("application/openmetrics-text")
        names = {family.name for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
        assert "apex_events_landed" in names


def test_metrics_on_loopback_are_for_names_of_this_machine() -> None:
    with (
        exposed(Address("127.0.0.1", 0), process="worker") as address,
        pytest.raises(HTTPError) as refused,
    ):
        scrape(address.url, Host="attacker.example")
    assert refused.value.code == 421 and b"apex_" not in refused.value.read()


def test_two_processes_with_one_setting_both_expose_their_metrics() -> None:
    with (
        exposed(Address("127.0.0.1", 0), process="worker") as first,
        exposed(first, process="worker") as second,
    ):
        assert first.port != second.port
        assert "apex_fallback_active" in scrape(second.url)[0]


@pytest.mark.parametrize("text", ["9464", "127.0.0.1", "127.0.0.1:x", ":9464", "host:70000", ""])
def test_a_malformed_address_is_refused_by_the_name_of_its_setting(text: str) -> None:
    with pytest.raises(ValidationError, match="worker_metrics"):
        Settings(worker_metrics=text)


def test_addresses() -> None:
    assert Address.parse("0.0.0.0:9464") == Address("0.0.0.0", 9464)
    assert Address.parse("[::1]:9464").url == "http://[::1]:9464/metrics"
    assert Settings().gateway_metrics == ""


def test_cards_of_processes_with_one_name_stand_side_by_side(tmp_path: Path) -> None:
    own, parent = os.getpid(), os.getppid()
    first = ProcessCard(process="worker", pid=own, build="a", metrics="http://127.0.0.1:1/metrics")
    second = ProcessCard(
        process="worker", pid=parent, build="b", metrics="http://127.0.0.1:2/metrics"
    )
    with registered(tmp_path, first):
        with registered(tmp_path, second):
            assert {card.build for card in running_processes(tmp_path)} == {"a", "b"}
        assert running_processes(tmp_path) == [first]
    assert running_processes(tmp_path) == []


def test_the_card_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "0"])
    process.wait()
    card = ProcessCard(process="bulk", pid=process.pid, metrics="http://127.0.0.1:1/metrics")
    folder = tmp_path / "run" / "processes"
    folder.mkdir(parents=True)
    (folder / "bulk-1.json").write_text(card.model_dump_json())
    (folder / "bulk-2.json").write_text("{")
    assert running_processes(tmp_path) == []
    assert not (folder / "bulk-1.json").exists()


def test_targets_are_a_file_sd_document_that_every_user_may_read(tmp_path: Path) -> None:
    card = ProcessCard(process="worker", pid=os.getpid(), metrics="http://127.0.0.1:9465/metrics")
    with registered(tmp_path, card):
        write_targets(tmp_path)
    file = tmp_path / "prometheus-targets.json"
    assert file.stat().st_mode & 0o777 == 0o644
    [group] = json.loads(file.read_text())
    assert group == {
        "targets": ["127.0.0.1:9465"],
        "labels": {"process": "worker", "__metrics_path__": "/metrics"},
    }
    assert targets([]) == "[]\n"


def test_names_follow_the_conventions() -> None:
    for name, kind, description in metric_rows():
        assert name.startswith("apex_") and description.endswith("."), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert not name.endswith(("_ms", "_milliseconds", "_kb", "_percent")), name


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="NOT TESTED: promtool (package `prometheus`) is missing"
)
def test_promtool_finds_nothing_to_change_in_our_metrics() -> None:
    """Those of this process: all that the package declares. `make soak` checks each process of a running stack."""
    lines = generate_latest(REGISTRY).decode().splitlines(True)
    ours = [line for line in lines if line.startswith(("apex_", "# HELP apex_", "# TYPE apex_"))]
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input="".join(ours),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_series_that_alerts_need_exist_from_the_start() -> None:
    touch_metrics(["touched"])
    text = generate_latest(REGISTRY).decode()
    for series in (
        'apex_events_landed_total{source="touched"} 0.0',
        'apex_events_ended_total{source="touched",state="dead"} 0.0',
        'apex_pulls_total{outcome="failed",source="touched"} 0.0',
        'apex_webhooks_healed_total{source="touched"} 0.0',
        'apex_searchable_seconds_count{source="touched"} 0.0',
        'apex_step_seconds_count{step="verify"} ',  # other tests in this process count, too
        "apex_fallback_active ",
    ):
        assert series in text
    assert isinstance(LANDED, Counter) and isinstance(FALLBACK, Gauge)


def test_a_family_of_gauges_is_replaced_as_a_whole() -> None:
    gauge = Gauge("test_family", "A family.", ["source"])
    family = GaugeFamily(gauge)
    family.show({("a",): 1.0, ("b",): 2.0})
    family.show({("b",): 3.0})
    samples = [sample for metric in gauge.collect() for sample in metric.samples]
    assert [(sample.labels["source"], sample.value) for sample in samples] == [("b", 3.0)]
