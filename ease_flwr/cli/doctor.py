"""`ease doctor`: can a run start on this machine?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ease_flwr.cli.shared import mistakes


def doctor(
    gpu: Annotated[bool, typer.Option("--gpu", help="Ask torch for GPUs as well, which takes some ten seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Can a run start on this machine? What there is, and what to do where something is missing.

    Exit status 0: it can, 1: something is to be mended first. What it prints belongs into a report of a fault.
    """
    with mistakes("doctor"):
        from ease_flwr.hosts.doctor import examine

        found = examine(gpu)
    bad = sum(not f.ok for f in found)
    if as_json:
        print(json.dumps({"ok": not bad, "findings": [asdict(f) for f in found]}, indent=1))
    else:
        for f in found:
            word = "OK" if f.ok and not f.advice else "note" if f.ok else "MEND"
            print(f"{word:4}  {f.what:15}  {f.found}" + (f": {f.advice}" if f.advice else ""))
        print(f"{bad} to mend before a run can start here" if bad else "a run can start here")
    raise typer.Exit(1 if bad else 0)
