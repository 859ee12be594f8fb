"""Around every command: streams that can be written, whoever reads them, and one line for what a machine refuses."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any

import click
from typer.core import TyperGroup

from ease_flwr import WINDOWS

PANELS = RUNS, FORGETTING, JUDGING, HOSTS, DATA = (
    *("Run and compare", "Forget and go on", "Audit and report"),
    *("Deploy and hosts", "Data and models"),
)
"""Groups of commands, in the order that `ease --help` shows."""


class Commands(TyperGroup):
    """`ease`, as it is called by a script, by `python -m` and by tests."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Group by group."""
        return sorted(super().list_commands(ctx), key=lambda name: PANELS.index(vars(self.commands[name])["rich_help_panel"]))

    def main(self, *words: Any, **how: Any) -> Any:
        """Do a command; ends the process, as all programs of click."""
        open_streams()
        if sys.platform == "win32":
            print(f"ease: {WINDOWS}", file=sys.stderr)
            sys.exit(2)
        status: Any = 0
        try:
            super().main(*words, **how)
        except SystemExit as ended:
            status = ended.code
        except (OSError, ImportError) as error:  # of commands that have not told it themselves
            status = _failed(error)
        if (left := _unwritten()) and not status:
            status = _failed(left)
        sys.exit(status)


def open_streams() -> None:
    """Let every stream be there, and write what a terminal cannot show as an escape.

    A descriptor that was closed would be given to the next file, and what a child process says would be written into that.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def said(command: str, error: OSError | ImportError) -> str:
    """The line for what the machine, or the installation, refuses."""
    name = f"ease {command}".strip()
    if isinstance(error, ImportError):
        return f"{name}: {' '.join(str(error).split())}: `ease doctor` says what is missing"
    where = f"{error.filename}: " if error.filename else ""
    return f"{name}: {where}{error.strerror or ' '.join(str(error).split()) or type(error).__name__}"


def _unwritten() -> OSError | None:
    """Write what is left; why that could not be, but where nobody reads it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries it again at its end
        return None if isinstance(error, BrokenPipeError) else error
    return None


def _failed(error: OSError | ImportError) -> int:
    with suppress(OSError):
        print(said("", error), file=sys.stderr)
    return 1
