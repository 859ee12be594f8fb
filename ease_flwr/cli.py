"""`ease`: run an experiment, put finished runs side by side, make the base model.

Everything here works without torch and flwr in memory, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import json
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
def ablate(
    experiment: Annotated[str, typer.Argument(help="File in conf/experiment/.")] = "personas",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    groups: Annotated[
        str, typer.Option(help="Groups of variants: parts, foils, bke, gsd, lambda.")
    ] = "parts,foils,bke,gsd,lambda",
    folder: Annotated[Path, typer.Option(help="Folder of the cells; finished ones are not run again.")] = Path("ablation"),
    set: Annotated[list[str] | None, typer.Option(help="key=value of the experiment, for all cells.")] = None,
) -> None:
    """Switch off each part of EASE, swap each choice, from one learnt federation a seed; writes ablation.md and .json."""
    from ease_flwr import sweep

    try:
        wanted = [g.strip() for g in groups.split(",")]
        if unknown := [g for g in wanted if g not in sweep.ABLATION]:
            raise config.ConfigError(f"no group {unknown[0]!r}: there are {', '.join(sweep.ABLATION)}")
        if not all(s.strip().isdigit() for s in seeds.split(",")):
            raise config.ConfigError(f"--seeds {seeds!r}: expected numbers with commas, for example 0,1,2")
        variants = [v for g in wanted for v in sweep.ABLATION[g]]
        numbers = [int(s) for s in seeds.split(",")]
        found = sweep.run(experiment, variants, numbers, folder.absolute(), set or [], lambda line: print(line, flush=True))
    except config.ConfigError as error:
        print(f"ease ablate: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    (folder / "ablation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = sweep.table(found)
    (folder / "ablation.md").write_text(table, encoding="utf-8")
    print(table)
    print(f"in {folder}")
    failed = any("failed" in r for by_seed in found.values() for r in by_seed.values())
    raise typer.Exit(1 if failed else 0)


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
