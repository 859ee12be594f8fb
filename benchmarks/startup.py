"""How long one waits: for help, for the answer to a mistake, for the first round of a run.

python -m benchmarks.startup FILE.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EASE = str(Path(sys.executable).parent / "ease")
CASES = {
    "ease --help": ["--help"],
    "unknown experiment": ["run", "persona"],
    "unknown key": ["run", "--set", "learn.round=3"],
    "missing data": ["run", "flickr30k", "--set", "data.root=/nowhere"],
}


def main(file: Path) -> None:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "EASE_FLWR_HOME": folder, "FLWR_HOME": f"{folder}/flwr"}
        for what, words in CASES.items():
            seconds = []
            for _ in range(5):
                began = time.perf_counter()
                subprocess.run([EASE, *words], env=environment, capture_output=True, check=False)
                seconds.append(time.perf_counter() - began)
            found[what] = round(statistics.median(seconds), 2)
            print(what, found[what], flush=True)
        began = time.time()
        words = [
            "run",
            "--until",
            "learn",
            "--run-dir",
            f"{folder}/run",
            "--set",
            "learn.rounds=2",
            "--set",
            "evaluation.every=0",
        ]
        subprocess.run([EASE, *words], env=environment, capture_output=True, check=True)
        found["ease run, two rounds, to its end"] = round(time.time() - began, 2)
        rounds = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        first = (Path(folder) / "run" / "experiment.json").stat().st_mtime - began
        found["ease run, until the app is there"] = round(first, 2)
        found["ease run, to the end of the first round"] = round(first + rounds[2]["elapsed"], 2)
    print(json.dumps(found, indent=1))
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
