"""How much processes are held back, and what `apex doctor` reports about it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from apex_memory import machine_load
from apex_memory.cli import doctor
from apex_memory.cli.client import Gateway
from apex_memory.config import Settings
from apex_memory.errors import Unavailable
from apex_memory.gateway.read_models.status import LONGEST_SECONDS, SECONDS, longest_wait
from apex_memory.machine_load import LoadMeter, cpu_pressure, throttled_periods
from apex_memory.tls import ClientTls

IDLE = {"delay_seconds": 0.003, "processors": 8, "pressure": 0.02, "throttled": None}


def test_delays_are_averaged_and_reported() -> None:
    averages: list[float] = []
    meter = LoadMeter(averages.append)
    assert meter.current().delay_seconds == 0
    for delay in (0.1, 0.3):
        meter.add(delay, None)
    assert averages == pytest.approx([0.1, 0.2])
    assert meter.current().delay_seconds == pytest.approx(0.2)
    for _ in range(machine_load.SAMPLES):
        meter.add(0, None)
    assert meter.current().delay_seconds == 0, "it forgets what is over"


def test_the_share_of_stopped_periods_is_of_the_last_samples() -> None:
    meter = LoadMeter()
    assert meter.current().throttled is None
    for elapsed, stopped in ((1000, 0), (1010, 8), (1020, 16)):
        meter.add(0, (elapsed, stopped))
    assert meter.current().throttled == pytest.approx(0.8)


async def test_a_blocked_process_runs_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_load, "SAMPLE_SECONDS", 0.01)
    measured = asyncio.Event()
    meter = LoadMeter(lambda delay: measured.set())
    watching = asyncio.create_task(meter.watch())
    await asyncio.sleep(0)  # one turn of the loop, in which the meter begins to wait
    time.sleep(0.3)  # the fault itself: the process blocks its loop
    await asyncio.wait_for(measured.wait(), 10)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert meter.current().delay_seconds > 0.05


def test_pressure_is_a_share_of_the_last_minute(tmp_path: Path) -> None:
    file = tmp_path / "cpu"
    assert cpu_pressure(file) is None
    file.write_text(
        "some avg10=92.25 avg60=61.08 avg300=24.62 total=14085638090\nfull avg10=0.00\n"
    )
    assert cpu_pressure(file) == pytest.approx(0.6108)


@pytest.mark.parametrize(
    ("line", "stat"),
    [
        ("0::/app/stack", "app/stack/cpu.stat"),
        ("0::/app/stack", "app/cpu.stat"),
        ("0::/", "cpu.stat"),
        ("4:cpu,cpuacct:/app", "cpu,cpuacct/app/cpu.stat"),
        ("4:cpu:/app", "cpu/app/cpu.stat"),
        ("4:cpu:/not/in/this/container", "cpu/cpu.stat"),
    ],
)
def test_a_limit_is_found_in_both_versions_of_cgroups(tmp_path: Path, line: str, stat: str) -> None:
    groups, mount = tmp_path / "groups", tmp_path / "mount"
    groups.write_text(f"12:memory:/other\n{line}\n")
    (mount / stat).parent.mkdir(parents=True)
    (mount / stat).write_text("nr_periods 4168\nnr_throttled 4150\nthrottled_time 526826475517\n")
    assert throttled_periods(groups, mount) == (4168, 4150)


def test_without_a_limit_nothing_is_stopped(tmp_path: Path) -> None:
    groups, mount = tmp_path / "groups", tmp_path / "mount"
    assert throttled_periods(groups, mount) is None
    groups.write_text("0::/\n")
    mount.mkdir()
    (mount / "cpu.stat").write_text("usage_usec 5\nuser_usec 3\nsystem_usec 2\n")
    assert throttled_periods(groups, mount) is None


def test_checks_wait_longer_on_a_slow_machine_but_not_for_ever() -> None:
    assert longest_wait(0.001) == pytest.approx(SECONDS, rel=0.02)
    assert longest_wait(0.3) == pytest.approx(SECONDS + 6)
    assert longest_wait(100) == LONGEST_SECONDS


@pytest.mark.parametrize(
    ("load", "cause", "remedy"),
    [
        ({"delay_seconds": 0.4}, "the gateway runs 400 ms late", "more processors"),
        (
            {"delay_seconds": 2.0, "pressure": 0.93},
            "waited for one of 8 processors in 93%",
            "end other programs",
        ),
        (
            {"throttled": 0.99},
            "a limit of processor time (of a container or cgroup) stops it 99%",
            "raise the limit",
        ),
    ],
)
def test_doctor_names_a_slow_machine_its_cause_and_the_remedy(
    load: dict[str, float], cause: str, remedy: str
) -> None:
    (finding,) = doctor._machine(IDLE | load)
    assert finding.state == "note", "slowness alone is no failure"
    assert finding.detail.startswith("slow: ") and cause in finding.detail
    assert remedy in finding.remedy and "nothing is lost" in finding.remedy


def test_doctor_is_content_with_a_machine_that_is_on_time() -> None:
    (finding,) = doctor._machine(IDLE)
    assert (finding.state, finding.remedy) == ("good", "")


def report(**changes: Any) -> dict[str, Any]:
    store = {"name": "graph", "state": "ready", "version": "FalkorDB 4", "reason": None}
    temporal = {
        "reachable": True,
        "address": "127.0.0.1:1/apex",
        "milliseconds": 2,
        "failing": [],
        "fallback_since": None,
    }
    return {
        "stores": [store | {"milliseconds": changes.get("graph", 1.0)}],
        "temporal": temporal | {"milliseconds": changes.get("temporal", 1.0)},
        "parked": 0,
        "dead_letters": 0,
        "reranker": changes.get("reranker"),
        "absent_build": changes.get("absent_build"),
    }


def test_doctor_names_the_engine_whose_round_trip_is_slow() -> None:
    findings = {item.what: item for item in doctor._stores_and_events(report())}
    assert {item.state for item in findings.values()} == {"good"}
    findings = {
        item.what: item for item in doctor._stores_and_events(report(graph=1400, temporal=3000))
    }
    assert findings["store graph"].state == findings["temporal"].state == "note"
    assert "slow: a round trip takes 1.4 s" in findings["store graph"].detail
    assert "slow: a response takes 3.0 s" in findings["temporal"].detail


def test_doctor_names_a_current_build_without_workers() -> None:
    absent = {
        "detail": "no worker of the current build b1 runs",
        "remedy": "`apex builds promote b2`",
    }
    (finding,) = doctor._builds(report(absent_build=absent))
    assert (finding.state, finding.detail, finding.remedy) == ("bad", *absent.values())
    assert list(doctor._builds(report())) == []


def test_doctor_names_a_worker_that_runs_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "processes"
    folder.mkdir(parents=True)
    for name in ("bulk", "worker"):
        card = {"process": name, "pid": os.getpid(), "metrics": f"http://127.0.0.1:1/{name}"}
        (folder / f"{name}-1.json").write_text(json.dumps(card))

    def get(url: str, **options: Any) -> httpx2.Response:
        delay = "0.002" if url.endswith("bulk") else "1.25"
        return httpx2.Response(200, text=f"# HELP x y\napex_process_delay_seconds {delay}\n")

    monkeypatch.setattr(httpx2, "get", get)
    (finding,) = doctor._workers(Settings(data_dir=tmp_path))
    assert finding.what == "worker worker" and finding.state == "note"
    assert "runs 1.2 s late" in finding.detail or "runs 1.3 s late" in finding.detail


def test_a_slow_gateway_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise httpx2.ReadTimeout("slow")

    monkeypatch.setattr(httpx2.Client, "request", never)
    session = Gateway("http://127.0.0.1:1", "key", ClientTls())
    with pytest.raises(Unavailable, match="runs, and did not respond within 7 s") as caught:
        session.call("GET", "/v1/status", timeout=7)
    session.close()
    assert "apex up" not in caught.value.remedy and "apex doctor" in caught.value.remedy
