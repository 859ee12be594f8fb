"""In a notebook, a bar follows a run in place of the lines of its log."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from html import escape
from pathlib import Path
from typing import Any

from ease_flwr.following import situation
from ease_flwr.store.layout import RunLayout

SECONDS = 1.0
"""Between two looks at the run."""


@contextmanager
def followed(folder: Path) -> Iterator[None]:
    """While the block works on the run in `folder`: in a notebook a bar, elsewhere nothing."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ != "ZMQInteractiveShell":  # that of a notebook's kernel
        yield
        return
    from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

    shown, over = display(HTML(bar({"status": ""})), display_id=True), threading.Event()

    def follow() -> None:
        while not over.wait(SECONDS):
            shown.update(HTML(bar(situation(folder))))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    said, last = io.StringIO(), {"status": "", "error": ""}
    try:
        with redirect_stdout(said):
            yield
        last = situation(folder)
    finally:
        over.set()
        thread.join()
        shown.update(HTML(bar(last) if last["status"] in ("finished", "failed") else ""))
        log = RunLayout(folder).log
        known = set(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else set()
        for line in said.getvalue().splitlines():
            if line not in known:
                print(line)


def bar(found: dict[str, Any]) -> str:
    """HTML of where a run is, as `following.situation` tells it."""
    at = found.get("round")
    if found["status"] not in ("submitted", "running") or not at:
        words = {"": "starting", "submitted": "starting", "running": "at work"}.get(found["status"], found["status"])
        return escape(": ".join(w for w in (words, found.get("error", "")) if w))
    words = f"{at['model']} {at['round']}/{at['last']}, loss {at['loss']:.3f}, {at['answered']}/{at['asked']} clients, "
    words += f"ETA {at['eta']:.0f} s"
    return f'<progress max="{at["last"]}" value="{at["round"]}"></progress> {escape(words)}'
