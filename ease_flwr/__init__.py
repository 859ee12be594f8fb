"""ease_flwr: make a federated image-text model forget, and show what is left of it.

    import ease_flwr as ease

    run = ease.run("personas", overrides={"learn.rounds": 20})

Importing this package is free: torch, open_clip and flwr are imported where they are used. `run`, `open_run`, `Run`, `Request`
and `RunError` are those of ease_flwr/api.py.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ease_flwr.api import Request, Run, open_run, run
    from ease_flwr.config import RunError

__version__ = "0.2.0"
WINDOWS = "it needs file locks and signals that Windows does not have: use WSL 2, which is Linux"
__all__ = ["Request", "Run", "RunError", "__version__", "open_run", "run"]

_HERE = Path(__file__).resolve().parent
if not (_HERE / "strategies").is_dir():  # a checkout, or the app that Flower unpacks: both have these folders on top
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ease_flwr' has no attribute {name!r}")
    if sys.platform == "win32":
        raise ImportError(f"ease_flwr: {WINDOWS}")
    return getattr(import_module("ease_flwr.api"), name)  # by its name: no other module depends on it
