"""`ease`: run an experiment, put finished runs side by side, make the base model.

Everything here works without torch and flwr in memory, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ease_flwr.core import config

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="File in conf/experiment/.")] = "personas",
    strategy: Annotated[str, typer.Option(help="File in conf/strategy/.")] = "ease",
    seed: Annotated[int, typer.Option(help="Decides the world, the adapters at the start and all orders.", min=0)] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="New folder for the run.")] = None,
    fresh: Annotated[bool, typer.Option(help="Compute learn phases again instead of taking them from the cache.")] = False,
    set: Annotated[list[str] | None, typer.Option(help="key=value of the experiment; may be repeated.")] = None,
    client_cpus: Annotated[int, typer.Option(help="CPU cores of one simulated client.", min=1)] = 1,
    client_gpus: Annotated[float, typer.Option(help="Share of a GPU that Ray reserves for one simulated client.", min=0)] = 0.0,
) -> None:
    """Learn, forget, hold and audit in a simulation on this machine; ends with a table.

    KEY of --set is the dotted path of a field, for example forget.targets=client-4, data.root=DIR, learn.rounds=3.
    """
    from ease_flwr import launcher

    try:
        code = launcher.run(experiment, strategy, seed, run_dir, fresh, set or [], client_cpus, client_gpus)
    except config.ConfigError as error:
        print(f"ease run: {error}", file=sys.stderr)
        code = 2
    raise typer.Exit(code)


@app.command()
def make_base(
    path: Annotated[Path, typer.Option(help="File to write.")] = config.APP / "ease_flwr" / "data" / "personas-base.json",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    scenes: Annotated[int, typer.Option(help="Base scenes to train on.", min=512)] = 20000,
    epochs: Annotated[int, typer.Option(min=1)] = 32,
) -> None:
    """Train the base model of the built-in world on drawn scenes and write it as one JSON file (minutes on two cores)."""
    if not path.parent.is_dir():
        print(f"ease make-base: no folder {path.parent}", file=sys.stderr)
        raise typer.Exit(2)
    from ease_flwr.data.make_base import make_base as train

    recall = train(path, seed, scenes, epochs, lambda line: print(line, flush=True))
    print(f"R@1 {recall:.1f} % on 500 unseen scenes; {path.stat().st_size} bytes in {path}")


@app.command()
def summary(runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of one experiment.")]) -> None:
    """Print several runs side by side as Markdown, with mean and spread of the gaps to the reference."""
    from ease_flwr.audit import summary as runs_summary

    try:
        print(runs_summary.summary(runs), end="")
    except config.ConfigError as error:
        print(f"ease summary: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
