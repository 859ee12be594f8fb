"""`python -m tests.kill_9 FOLDER KILLS`: a run in child processes that get SIGKILL at random moments, resumed until it is done.

Prints a line a kill, and at the end whether every run came to the adapters of one that nobody killed.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from ease_flwr import server_app
from ease_flwr.core import adapters
from tests.in_process_grid import InProcessGrid
from tests.small import SMALL, small_experiment
from tests.test_audit import context_of
from tests.test_standing import hashes, settings


def submit(run_config):
    """In a child process; returns its id."""
    if child := os.fork():
        return child
    with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
        server_app.main(InProcessGrid(SMALL["data.clients"], run_config), context_of(run_config))
    os._exit(0)


def main(folder, kills):
    os.environ["EASE_FLWR_HOME"] = str(folder / "home")
    experiment = small_experiment()
    adapters.load(experiment.model, experiment.lora, experiment.seed)  # before any fork: children need not load it
    changes = {"forget.then": "client-1"}
    began = time.monotonic()
    os.waitpid(submit(settings(folder / "whole", **changes)), 0)
    expected, lasts = hashes(folder / "whole"), time.monotonic() - began
    draw, done, runs, same = random.Random(0), 0, 0, True
    while done < kills:
        runs += 1
        shutil.rmtree(folder / "home", ignore_errors=True)  # no cache: everything is at stake
        run = folder / f"run-{runs}"
        run_config = settings(run, **changes)
        while True:
            child = submit(run_config)
            time.sleep(draw.uniform(0.2, 0.6) * lasts)
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            if done < kills:
                os.kill(child, signal.SIGKILL)
                done += 1
            os.waitpid(child, 0)
            if json.loads((run / "state.json").read_text())["status"] == "finished":
                break
            log = (run / "log.txt").read_text().splitlines() if (run / "log.txt").is_file() else ["nothing yet"]
            print(f"kill {done}: after {log[-1][:60]!r}", flush=True)
            run_config = {**run_config, "resume": True}
        same &= hashes(run) == expected
    print(f"{done} kills in {runs} runs: {'every run as without' if same else 'NOT as without'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]))
