"""Which tower holds each kind of association of the built-in world: the proof that there are three kinds.

    python -m benchmarks.swap FILE.json RUN...

RUN is the folder of a finished and audited run. The tables show R@1 of what only the forgotten client knew, by kind: of the
original model, of the retrained one, and of the two models that have one tower of either. Writes the numbers and what they
break; ends with 1 where they break something.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ease_flwr.audit.examination import TOWERS

CARRIER = {"word": "text", "look": "visual", "both": ""}
"""The tower that has to learn a kind."""
HEADROOM, CARRIED = 40.0, 20.0


def measured(numbers: dict[str, Any]) -> dict[str, dict[str, float]]:
    """kind -> what -> R@1 in percent, of `numbers` of an audit.json. what: original, retrain, or one tower of the original."""
    of = {m: {key: found["value"] for key, found in numbers[m].items()} for m in ("original", "retrain")}
    return {
        kind: {m: of[m][f"r1.forget_{kind}"] for m in of}
        | {tower: of["original"][f"swap.{tower}.forget_{kind}"] for tower in TOWERS}
        for kind in CARRIER
    }


def broken(kind: str, found: dict[str, float]) -> list[str]:
    """What these numbers of one kind break."""
    said = []
    if found["original"] - found["retrain"] < HEADROOM:
        said.append(f"{kind}: headroom below {HEADROOM:g}")
    if carrier := CARRIER[kind]:
        (other,) = {*TOWERS} - {carrier}
        if found[carrier] - found[other] < CARRIED:
            said.append(f"{kind}: the {carrier} tower does not bring back {CARRIED:g} more than the other")
    else:
        half = found["original"] / 2
        said += [f"{kind}: the {tower} tower alone brings back half" for tower in TOWERS if found[tower] >= half]
    return said


def main(to: str, *runs: str) -> int:
    out = []
    print("| seed, forgotten | kind | original | retrain | image tower of original, text of retrain | the other way round |")
    print("|---|---|---:|---:|---:|---:|")
    for run in map(Path, runs):
        results, audit = (json.loads((run / name).read_text("utf-8")) for name in ("results.json", "audit.json"))
        cell = f"{results['seed']}, {' '.join(results['forget']['targets'])}"
        kinds = measured(audit["numbers"])
        for kind, found in kinds.items():
            numbers = " | ".join(f"{found[what]:.1f}" for what in ("original", "retrain", *TOWERS))
            print(f"| {cell} | {kind} | {numbers} |")
        out.append({"cell": cell, "kinds": kinds, "broken": [b for kind, found in kinds.items() for b in broken(kind, found)]})
    Path(to).write_text(json.dumps(out, indent=1) + "\n", "utf-8")
    wrong = [f"{one['cell']}: {line}" for one in out for line in one["broken"]]
    print("\n" + ("\n".join(wrong) or "every kind is what it says"))
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("benchmarks.swap: name the folders of finished runs")
    sys.exit(main(*sys.argv[1:]))
