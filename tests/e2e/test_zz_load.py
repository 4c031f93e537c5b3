import asyncio, subprocess, sys, os, time
from tests.e2e.test_api_process import *


async def test_load(served):
    p = int(served.url.rpartition(":")[2])
    os.sched_setaffinity(served.process.pid, {1})

    def cpu():
        f = open(f"/proc/{served.process.pid}/stat").read().rpartition(")")[2].split()
        return (int(f[11]) + int(f[12])) / 100

    for rate, secs in ((50, 3), (200, 10), (200, 10), (1000, 4), (2500, 3)):
        c = cpu()
        out = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "/tmp/load.py", str(p), str(rate), str(secs)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": "/work/main"},
        )
        print(
            out.stdout.strip(),
            out.stderr[-500:],
            "cpu ms/req",
            round((cpu() - c) * 1000 / (rate * secs), 2),
            os.getloadavg()[0],
        )
