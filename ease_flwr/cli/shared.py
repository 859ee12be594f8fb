"""What the commands of `ease` share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Annotated

import typer

from ease_flwr import __version__, config
from ease_flwr.cli.terminal import said

CPUS = Annotated[int, typer.Option(help="Simulation: CPU cores of one client.", min=1)]
GPUS = Annotated[float, typer.Option(help="Simulation: share of a GPU that Ray reserves for one client.", min=0)]
QUORUM = Annotated[
    float,
    typer.Option(help="Share of the clients that must be there, this time; 0: as the experiment says.", min=0, max=1),
]
RAY = Annotated[
    str,
    typer.Option(
        envvar="EASE_FLWR_RAY", help="Simulation: HOST:PORT of a Ray cluster (docs/ray.md); default: a Ray of its own, here."
    ),
]
SUPERLINK = Annotated[str, typer.Option(help="Connection of the flwr CLI to a deployed federation; default: a simulation.")]


@contextmanager
def mistakes(command: str) -> Iterator[None]:
    """One line and exit status 2 for a wrong setting; 1 where the machine refuses something, or a run has stopped, which has
    said why."""
    try:
        yield
    except config.ConfigError as error:
        print(f"ease {command}: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except BrokenPipeError:  # nobody reads any more: as all programs end then
        raise
    except (OSError, ImportError) as error:
        print(said(command, error), file=sys.stderr)
        raise typer.Exit(1) from None
    except config.RunError:
        raise typer.Exit(1) from None


def _named(context: typer.Context, experiment: str) -> str:
    """The name of an experiment that is given by its file."""
    with mistakes(context.info_name or ""):
        return config.own.named(experiment)


def here(context: typer.Context, param: typer.CallbackParam, path: Path | None) -> Path | None:
    """A file or a folder as it is meant from where one stands; the shell leaves the ~ of --to=~/FILE alone."""
    with mistakes(context.info_name or ""):
        return Path(config.absolute(str(path), param.opts[-1] if param.opts[-1][0] == "-" else "folder")) if path else None


RUN = Annotated[Path, typer.Argument(help="Folder of a run.", callback=here)]
EXPERIMENT = Annotated[str, typer.Argument(help="Name of a file in conf/experiment/, or a YAML file.", callback=_named)]


def _version(wanted: bool) -> None:
    """Print what is installed, and end."""
    if wanted:
        commit = f", commit {found}" if (found := _commit()) else ""
        print(f"ease_flwr {__version__}{commit}, code {config.code_hash()[:12]}")
        print(", ".join(f"{name} {version(name)}" for name in ("flwr", "ray", "torch", "open_clip_torch", "peft")))
        raise typer.Exit


def _commit() -> str:
    """Of a checkout; with -dirty where files were changed since."""
    if not (config.APP / ".git").exists() or which("git") is None:
        return ""
    command = ["git", "-C", str(config.APP), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def own_files(
    shown: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Versions of this and of what it stands on.")
    ] = False,
    conf: Annotated[
        Path | None,
        typer.Option(envvar="EASE_FLWR_CONF", help="Folder with experiment/ and variant/ of your own; ./conf counts anyway."),
    ] = None,
) -> None:
    """Take along what the user has here: conf/, strategies/ and clients/ in the working folder, and --conf."""
    with mistakes("--conf"):
        config.own.take_along(conf)
