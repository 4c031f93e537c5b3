"""A supervisor as a process of its own, for tests that kill it: `python stack_process.py FOLDER [OPTION]`.

`untied` leaves out what ends children with their parent, as on systems that cannot do it. `background`
ignores SIGINT, as a shell's background job does from its start; otherwise SIGINT ends it, also where the
tests themselves are such a job. Prints a JSON line for each event, then one named `up`; runs until a
signal ends it.
SIGUSR1 prints where its threads stand, SIGUSR2 where its tasks do.
"""

import asyncio
import faulthandler
import json
import signal
import sys
from unittest.mock import patch

from apex_memory.config import EMBEDDED, Settings
from apex_memory.engines.selection import embedded_engines
from apex_memory.engines.supervisor import Supervisor


def report(name: str, what: str, detail: str) -> None:
    print(json.dumps([name, what, detail]), flush=True)


def show_tasks() -> None:
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stdout)
    sys.stdout.flush()


async def main(folder: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, show_tasks)
    settings = Settings(data_dir=folder, graph=EMBEDDED)
    async with Supervisor(settings.data_dir, report) as supervisor:
        await supervisor.start(*embedded_engines(settings, 32))
        report("stack", "up", "")
        await supervisor.wait()


faulthandler.register(signal.SIGUSR1, file=sys.stdout)
if "untied" in sys.argv:
    patch("apex_memory.engines.process.die_with_parent", lambda number: None).start()
background = "background" in sys.argv
signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
asyncio.run(main(sys.argv[1]))
