"""The server side of the app: reads the run config, runs what it asks for, and leaves state.json behind whatever happens."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ease_flwr import config
from ease_flwr.exchange.transport import FederationError
from ease_flwr.server import pipeline, submission
from ease_flwr.server.audit import audit_again
from ease_flwr.store.files import default_folder
from ease_flwr.store.run import Run

app = ServerApp()
FLOWERS = ("flwr-simulation", "flwr-serverapp")
"""Processes that Flower starts for one run, and that end with it."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One submission. Flower shows what it raises; of a mistake that has its own words the line says it all."""
    try:
        serve(grid, context)
    except (config.ConfigError, FederationError):
        if Path(sys.argv[0]).name in FLOWERS:
            sys.tracebacklimit = 0
        raise


def serve(grid: Grid, context: Context) -> None:
    """A new run, the rest of one, or an audit. Raises what stopped it, once state.json says so."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    experiment, submitted = config.from_run_config(context.run_config)
    folder = Path(submitted.run_dir) if submitted.run_dir else default_folder(experiment, submitted.strategy)
    if not folder.is_absolute():
        raise config.ConfigError(f"run-dir {folder}: give an absolute path, the app runs in another folder than you")
    run = Run(folder, experiment, submitted.strategy, submitted.fresh, submitted.resume)
    try:
        if submitted.audit:
            audit_again(grid, run, experiment, submitted.audit)
        else:
            if not submitted.resume:
                submission.begin(run, experiment, submitted, context.run_config)
            pipeline.run(grid, run, experiment)
        run.state("finished")
    except pipeline.SetAsideError as error:
        run.state("finished", str(error))
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a full disk too
            run.state("failed", why := submission.reason(error, folder))
            run.event(f"failed: {why}")
        raise
    finally:
        run.close()
