"""Make a federated image-text model forget, and see what is left. Begin with `ease run`."""

# Without torch and flwr in memory, so that help and mistakes are answered at once.

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ease_flwr import config
from ease_flwr.cli import data as cli_data
from ease_flwr.cli import deploy as cli_deploy
from ease_flwr.cli import host as cli_host
from ease_flwr.cli import operator as cli_operator
from ease_flwr.cli.doctor import doctor
from ease_flwr.cli.shared import CPUS, EXPERIMENT, GPUS, QUORUM, RAY, RUN, SUPERLINK, here, mistakes, own_files
from ease_flwr.cli.terminal import DATA, HOSTS, JUDGING, RUNS, Commands

app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.callback()(own_files)


@app.command(rich_help_panel=RUNS)
def run(
    experiment: EXPERIMENT = "personas",
    strategy: Annotated[str, typer.Option(help="File in strategies/; `ease methods` lists them.")] = "ease",
    seed: Annotated[
        int | None,
        typer.Option(help="Decides the world, the adapters at the start and all orders; default: the experiment's own.", min=0),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="New folder for the run.", callback=here)] = None,
    fresh: Annotated[bool, typer.Option(help="Compute learn phases again instead of taking them from the cache.")] = False,
    set: Annotated[list[str] | None, typer.Option(help="key=value of the experiment; may be repeated.")] = None,
    until: Annotated[str, typer.Option(help="learn: end when it has learnt; `ease forget` does the rest later.")] = "",
    superlink: SUPERLINK = "",
    client_cpus: CPUS = 1,
    client_gpus: GPUS = 0.0,
    ray: RAY = "",
) -> None:
    """Learn, forget, continue and audit, in a simulation on this machine or on a deployed federation; ends with a table.

    KEY of --set is the dotted path of a field, for example forget.targets=client-4, data.root=DIR, learn.rounds=3.
    tracking=tensorboard (or trackio, wandb) sends the numbers of every round there too. `ease open RUN_DIR` follows the run.
    """
    from ease_flwr import api
    from ease_flwr.hosts.simulation import Where

    with mistakes("run"):
        where = Where(superlink, client_cpus, client_gpus, ray)
        how: Any = {"seed": seed, "strategy": strategy, "folder": run_dir, "fresh": fresh, "until": until, "where": where}
        ended = api.run(experiment, overrides=config.parse_assignments(set or []), **how)
        print("" if until else ended.verdict())


@app.command(rich_help_panel=JUDGING)
def audit(
    run: RUN,
    level: Annotated[
        str, typer.Option(help="quick: recall, similarity, membership; full: relearning and probes too.")
    ] = "full",
    references: Annotated[
        int, typer.Option(help="Retrainings, trained now where a run with one has fewer; 0: 2 for full, 1 for quick.", min=0)
    ] = 0,
    shadows: Annotated[
        int, typer.Option(help="Instead, run so many federations like it and attack with them (U-LiRA); for small worlds.")
    ] = 0,
    superlink: SUPERLINK = "",
    client_cpus: CPUS = 1,
    client_gpus: GPUS = 0.0,
    ray: RAY = "",
    quorum: QUORUM = 0.0,
) -> None:
    """What is left? Ask every client about every model of a finished run; answers are in RUN/audit-LEVEL."""
    from ease_flwr import api
    from ease_flwr.hosts.simulation import Where

    with mistakes("audit"):
        if not shadows:
            api.Run(run.absolute()).audit(level, references, Where(superlink, client_cpus, client_gpus, ray, quorum))
            return
        from ease_flwr.sweep import shadows as federations

        print(f"{federations.attack(run, shadows, _say)}\nin {run}")


@app.command(rich_help_panel=JUDGING)
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a comparison.")],
    pictures: Annotated[bool, typer.Option(help="Show what searches find: with pictures of the run's own world.")] = True,
) -> None:
    """One page to look at: report.html in the folder, with every figure by itself in figures/."""
    with mistakes("report"):
        from ease_flwr.audit import report as pages

        if (folder / "comparison.json").is_file():
            from ease_flwr.sweep import comparison

            print(comparison.report(folder))
        else:
            print(pages.of_run(folder, pictures))


SEEDS = Annotated[str, typer.Option(help="Seeds, with commas.")]
STRATEGIES = Annotated[str, typer.Option(help="Files in strategies/, with commas; all: each that can forget this.")]
SET = Annotated[list[str] | None, typer.Option(help="key=value of the experiment, for all cells; may be repeated.")]
FOLDER = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the cells; finished ones are not run again. Default: WHAT-EXPERIMENT among the runs.", callback=here
    ),
]
JOBS = Annotated[int, typer.Option(help="Cells at a time; each uses all cores by itself.", min=1)]


@app.command(rich_help_panel=RUNS)
def ablate(
    experiment: EXPERIMENT = "personas",
    seeds: SEEDS = "0,1,2",
    groups: Annotated[
        str, typer.Option(help="Groups of variants: parts, foils, bke, gsd, lambda.")
    ] = "parts,foils,bke,gsd,lambda",
    folder: FOLDER = None,
    set: SET = None,
    jobs: JOBS = 1,
) -> None:
    """Switch off each part of EASE, swap each choice, from one learnt federation a seed; writes ablation.md and .json."""
    from ease_flwr.sweep import ablation, cells

    with mistakes("ablate"):
        to = _cells(folder, "ablation", experiment, set)
        wanted = [*dict.fromkeys(g.strip() for g in groups.split(","))]
        if unknown := [g for g in wanted if g not in ablation.ABLATION]:
            raise config.ConfigError(f"no group {unknown[0]!r}: {config.among(unknown[0], [*ablation.ABLATION])}")
        variants = [v for g in wanted for v in ablation.ABLATION[g]]
        sweep = cells.Sweep(experiment, _numbers(seeds), to, set or (), _say, jobs)
        found = cells.run(sweep, variants)
    _finish(to, "ablation", {"md": ablation.table(found)}, {"": found})


@app.command(rich_help_panel=RUNS)
def compare(
    experiment: EXPERIMENT = "personas",
    strategies: STRATEGIES = "all",
    seeds: SEEDS = "0,1,2",
    budget: Annotated[str, typer.Option(help="What is equal in the first table: rounds or bytes.")] = "rounds",
    exchanges: Annotated[int, typer.Option(help="Exchanges of the equal budget; 0: as many as EASE has by itself.", min=0)] = 0,
    folder: FOLDER = None,
    set: SET = None,
    jobs: JOBS = 1,
) -> None:
    """Methods side by side from one learnt federation a seed, at equal traffic and with their own budgets.

    Writes comparison.md, .json and .csv.
    """
    from ease_flwr.sweep import cells, comparison

    with mistakes("compare"):
        to = _cells(folder, "comparison", experiment, set)
        if budget not in ("rounds", "bytes"):
            raise config.ConfigError(f"--budget {budget!r}: expected rounds or bytes")
        equal: comparison.Budget = "bytes" if budget == "bytes" else "rounds"
        names = _strategies(strategies, experiment, set or [])
        sweep = cells.Sweep(experiment, _numbers(seeds), to, set or (), _say, jobs)
        tables = comparison.compare(sweep, names, equal, exchanges)
    text = "\n".join(f"## {head}\n\n{comparison.table(tables[key])}" for key, head in comparison.HEADS.items())
    _finish(to, "comparison", {"md": text, "csv": comparison.rows(tables)}, tables)


@app.command(rich_help_panel=RUNS)
def tune(
    experiment: EXPERIMENT = "personas",
    strategies: STRATEGIES = "all",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas; keep them apart from those you report.")] = "3",
    budget: Annotated[int, typer.Option(help="Trials of each method, its defaults among them.", min=1)] = 4,
    folder: FOLDER = None,
    set: SET = None,
    jobs: JOBS = 1,
) -> None:
    """Search settings on validation pairs, with the same small budget for every method; writes tuning.md and .json."""
    from ease_flwr.sweep import cells, tuning

    with mistakes("tune"):
        to = _cells(folder, "tuning", experiment, set)
        names = _strategies(strategies, experiment, set or [])
        sweep = cells.Sweep(experiment, _numbers(seeds), to, set or (), _say, jobs)
        found = tuning.tune(sweep, names, budget)
    _finish(to, "tuning", {"md": tuning.table(found, budget)}, {"": found})


@app.command(rich_help_panel=RUNS)
def methods(show: Annotated[str, typer.Option(help="Name of one, to print both of its halves.")] = "") -> None:
    """List the methods of unlearning: what each does, forgets, keeps on the server, and asks of whom it forgets."""
    from ease_flwr import methods as listed

    with mistakes("methods"):
        print(listed.source(show) if show else listed.listing())


_say = partial(print, flush=True)


def _cells(folder: Path | None, what: str, experiment: str, told: list[str] | None) -> Path:
    """Where the cells of a sweep lie: in a folder for each experiment with these settings, or where it was typed."""
    from ease_flwr.store.files import home

    return folder or home() / "-".join((what, experiment, *([config.digest(sorted(told))[:8]] if told else [])))


def _numbers(seeds: str) -> list[int]:
    found = [s.strip() for s in seeds.split(",")]
    if not all(re.fullmatch(r"0|[1-9][0-9]{0,19}", s) for s in found):
        raise config.ConfigError(f"--seeds {seeds!r}: expected numbers with commas, for example 0,1,2")
    if large := [s for s in found if int(s) > cli_data.LAST]:
        raise config.ConfigError(f"--seeds {seeds!r}: {large[0]} is too large: {cli_data.LAST} at most")
    return [*dict.fromkeys(map(int, found))]


def _strategies(names: str, experiment: str, assignments: list[str]) -> list[str]:
    """These strategies, or all that can forget what this experiment forgets."""
    from ease_flwr import methods as listed

    loaded, _ = config.asked(experiment, assignments)
    return listed.able(loaded.forget.scenario) if names == "all" else [*dict.fromkeys(n.strip() for n in names.split(","))]


def _finish(folder: Path, name: str, texts: dict[str, str], tables: dict[str, Any]) -> None:
    """Write what was found, print it, and exit with 1 if a cell failed."""
    from ease_flwr.store.files import write_json, write_text

    write_json(folder / f"{name}.json", tables.get("", tables))
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)
    print(f"\n{texts['md']}\nin {folder}")
    failed = any("failed" in r for found in tables.values() for by_seed in found.values() for r in by_seed.values())
    raise typer.Exit(1 if failed else 0)


@app.command(rich_help_panel=JUDGING)
def summary(runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of one experiment.")]) -> None:
    """Print several runs side by side as Markdown, with mean and spread of the gaps to the reference."""
    from ease_flwr.audit import summary as runs_summary

    with mistakes("summary"):
        print(runs_summary.summary(runs), end="")


@app.command(rich_help_panel=JUDGING)
def noise(
    folders: Annotated[list[Path], typer.Argument(help="Finished runs of one experiment, or folders of them (a comparison).")],
    to: Annotated[Path | None, typer.Option(help="File; default: conf/noise/NAME.json.", callback=here)] = None,
) -> None:
    """How far do two retrainings lie apart? Pool all runs that have two, number by number, for the verdicts of later audits."""
    from ease_flwr.audit import noise as pooling

    with mistakes("noise"):
        file, found = pooling.write(folders, to)
    print("\n".join(f"{key:32} {n['s']:.3f} (cells: {n['cells']})" for key, n in found["numbers"].items()))
    print(f"cells: {found['cells']}, seeds: {', '.join(map(str, found['seeds']))}, in {file}")


@app.command(rich_help_panel=RUNS)
def bench(
    name: Annotated[str, typer.Argument(help="A file of benchmarks/, for example startup, step, cells, fuzz, mutants.")],
    words: Annotated[list[str] | None, typer.Argument(help="What that file takes besides.")] = None,
    to: Annotated[Path, typer.Option(help="JSON file to write.", callback=here)] = Path("benchmark.json"),
) -> None:
    """Measure what something costs on this machine: one of benchmarks/, which is part of the checkout."""
    import subprocess

    with mistakes("bench"):
        where = config.APP / "benchmarks"
        there = sorted(p.stem for p in where.glob("*.py") if "FILE.json" in p.read_text(encoding="utf-8"))
        if name not in there:
            raise config.ConfigError(f"no benchmark {name!r} in {where}: {config.among(name, there)}")
        if not to.parent.is_dir():
            raise config.ConfigError(f"--to {to}: no folder {to.parent}")
        command = [sys.executable, "-m", f"benchmarks.{name}", str(to), *(words or [])]
        raise typer.Exit(subprocess.call(command, cwd=config.APP))


app.command("doctor", rich_help_panel=RUNS)(doctor)
for panel, commands in cli_operator.COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(cli_deploy.deploy, name="deploy", rich_help_panel=HOSTS)
app.add_typer(cli_host.host, name="host", rich_help_panel=HOSTS)
app.add_typer(cli_data.data, name="data", rich_help_panel=DATA)
app.command("align", rich_help_panel=DATA)(cli_data.align)
app.command("make-base", rich_help_panel=DATA)(cli_data.make_base)
