"""The run at work: its folder is held by this process alone, and what happens is written down.

Everything is written atomically (a temporary name, then a rename), so a reader never meets half a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ease_flwr.config import ConfigError, Experiment, chosen, code_hash
from ease_flwr.store.files import locked, only_claimed, write_json
from ease_flwr.store.layout import RunLayout, no_run
from ease_flwr.store.phases import check_function
from ease_flwr.store.tracking import flat, tracker


class Run:
    """One run directory, in use by this process alone. Raises ConfigError where it cannot be used.

    resume: go on with a run that is there, begun with the same settings and, where a phase is unfinished, by the same code.
    """

    def __init__(self, folder: Path, experiment: Experiment, strategy: str, fresh: bool = False, resume: bool = False) -> None:
        self.folder = folder
        self.layout = RunLayout(folder)
        if not resume and folder.exists() and not only_claimed(folder):
            raise ConfigError(f"run-dir {folder} is not empty: choose another, or remove it")
        if resume and not self.layout.experiment.is_file():
            raise no_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.experiment = experiment
        self.fresh = fresh
        self.said = frozenset[str]()
        """Beginnings of the lines that an earlier process has said of the phase at hand."""
        self.started = time.monotonic()
        self._in_use = locked(self.layout.run_lock)
        self._in_use.__enter__()
        settings = {**experiment.model_dump(mode="json"), "strategy_name": strategy, "code": code_hash()}
        if resume:
            check_function(folder)
            self._check_same(settings)
            self._clear()
        else:
            write_json(self.layout.experiment, settings)
        self.track = tracker(experiment, folder)
        self.tracked = 0
        self.state("running")

    def _check_same(self, now: dict[str, Any]) -> None:
        """Raises ConfigError where a setting that changes an adapter is another one, or the code of an unfinished phase."""
        try:
            then = json.loads(self.layout.experiment.read_text(encoding="utf-8"))
            code, strategy, _ = then.pop("code"), then.pop("strategy_name"), then.pop("files", "")
            before = chosen(Experiment.model_validate(then), "learning", "later")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.layout.experiment}: {why}: this run cannot be gone on with") from None
        after = chosen(self.experiment, "learning", "later")
        differ = [k for k in after if after[k] != before[k]] + (["strategy"] if strategy != now["strategy_name"] else [])
        if differ:
            raise ConfigError(
                f"{self.folder} was begun with another {differ[0]}: go on with the settings in its experiment.json"
            )
        code = self.marked().get("code", code)  # of the phase at hand, which may have been begun after an upgrade
        if code != now["code"] and any(self.folder.glob("journal/*/*.safetensors")):
            raise ConfigError(
                f"{self.folder}: a phase was begun by other code ({code[:12]}, this is {now['code'][:12]}): finish it "
                f"with that version, or remove {self.folder}/journal to do the phase again"
            )

    def _clear(self) -> None:
        """Remove what was left half done. Take back the numbers of an unfinished phase: they will be said again. Lines stay."""
        with locked(self.layout.queue_lock, wait=True):  # somebody may be writing the queue
            for artefact in list(self.layout.artefacts()):
                if artefact.kind and artefact.kind.resume == "removes":
                    artefact.path.unlink(missing_ok=True)
        for folder in self.folder.glob("*.partial"):
            shutil.rmtree(folder)
        if (mark := self.marked()) and not self.layout.done(mark["phase"]):
            sizes, numbers, log = mark["sizes"], self.layout.metrics, self.layout.log
            if numbers.is_file() and numbers.stat().st_size > sizes[numbers.name]:
                os.truncate(numbers, sizes[numbers.name])
            if log.is_file():
                since = log.read_bytes()[sizes[log.name] :].decode(errors="replace").splitlines()
                self.said = frozenset(line.partition("  ")[0] for line in since)

    def marked(self) -> dict[str, Any]:
        """The mark of the phase that was at hand last: {"phase", "code", "sizes", "known"}; empty where there is none."""
        with contextlib.suppress(OSError, ValueError):
            mark: dict[str, Any] = json.loads(self.layout.mark.read_text(encoding="utf-8"))
            return mark
        return {}

    def mark(self, phase: str, known: dict[str, Any]) -> dict[str, Any]:
        """Note that a phase begins: how much was logged, and what is known of clients and requests.

        Where it began before, returns what was known then, so that the phase asks the same questions again."""
        mark, code = self.marked(), code_hash()
        if mark.get("phase") == phase and "known" in mark and (mark["code"] == code or self.layout.journal(phase).is_dir()):
            found: dict[str, Any] = mark["known"]
            return found
        logs = (self.layout.log, self.layout.metrics)
        sizes = {f.name: f.stat().st_size if f.is_file() else 0 for f in logs}
        write_json(self.layout.mark, {"phase": phase, "code": code, "sizes": sizes, "known": known})
        return known

    def learns_from(self, data: str) -> None:
        """Note in experiment.json what its settings find in files. data: their digest."""
        said = json.loads(self.layout.experiment.read_text(encoding="utf-8"))
        write_json(self.layout.experiment, {**said, "files": data})

    def close(self) -> None:
        """Let another process use the folder."""
        self._in_use.__exit__(None, None, None)

    def write(self, name: str, value: Any) -> None:
        """A JSON file of the run."""
        write_json(self.folder / name, value)

    def state(self, status: str, error: str = "") -> None:
        """running | finished | failed, with the reason in one line."""
        write_json(self.layout.state, {"status": status, "error": error})

    def event(self, line: str, **values: Any) -> None:
        """One line for people (stdout and log.txt) and, with values, one for programs (metrics.jsonl)."""
        self._say(line)
        self._note(values)

    def repeat(self, line: str, **values: Any) -> None:
        """An event that an earlier process has met too: the line is there already, unless that process died before it."""
        if line.partition("  ")[0] not in self.said:
            self._say(line)
        self._note(values)

    def _say(self, line: str) -> None:
        print(line, flush=True)
        with self.layout.log.open("a", encoding="utf-8") as f:
            f.write(line + "\n")

    def _note(self, values: dict[str, Any]) -> None:
        if values:
            if self.track and "model" in values:
                self.tracked += 1
                self.track(self.tracked, {f"{values['model']}/{k}": v for k, v in flat(values).items()})
            with self.layout.metrics.open("a", encoding="utf-8") as f:
                f.write(json.dumps({"elapsed": round(time.monotonic() - self.started, 2), **values}) + "\n")
