"""`python -m tests.kill_9 FOLDER KILLS`: a run in child processes that get SIGKILL at random moments, resumed until it is done.

Prints a line a kill, and at the end whether every run came to the adapters of one that nobody killed.
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path

from ease_flwr.model import adapters
from tests.in_process_grid import submit as play
from tests.small import hashes, settings, small_experiment

spawn = multiprocessing.get_context("spawn")  # not fork: OpenMP's threads do not survive it


def submit(run_config, ready):
    experiment = small_experiment()
    adapters.load(experiment.model, experiment.lora, experiment.seed)
    ready.set()
    with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
        play(run_config)


def start(run_config):
    """A child that has loaded everything and begins the run now."""
    ready = spawn.Event()
    child = spawn.Process(target=submit, args=(run_config, ready))
    child.start()
    ready.wait()
    return child


def state(run):
    return json.loads((run / "state.json").read_text()) if (run / "state.json").is_file() else {"status": "nothing yet"}


def main(folder, kills):
    os.environ["EASE_FLWR_HOME"] = str(folder / "home")
    changes = {"forget.then": "client-1"}
    child, began = start(settings(folder / "whole", **changes)), time.monotonic()
    child.join()
    expected, lasts = hashes(folder / "whole"), time.monotonic() - began
    draw, done, runs, same = random.Random(0), 0, 0, True
    while done < kills:
        runs += 1
        shutil.rmtree(folder / "home", ignore_errors=True)  # no cache: everything is at stake
        run = folder / f"run-{runs}"
        run_config = settings(run, **changes)
        while True:
            child = start(run_config)
            child.join(draw.uniform(0.2, 0.6) * lasts if done < kills else None)
            killed = child.is_alive()
            if killed:
                child.kill()
                child.join()
                done += 1
            if (now := state(run))["status"] == "finished":
                break
            if not killed:
                sys.exit(f"ended by itself, unfinished: {now}")
            log = (run / "log.txt").read_text().splitlines() if (run / "log.txt").is_file() else ["nothing yet"]
            print(f"kill {done}: after {log[-1][:60]!r}", flush=True)
            run_config = {**run_config, "resume": True}
        same &= hashes(run) == expected
    print(f"{done} kills in {runs} runs: {'every run as without' if same else 'NOT as without'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]))
