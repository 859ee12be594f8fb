"""ease_flwr: make a federated image-text model forget, and show what is left of it.

Importing this package is free: torch, open_clip and flwr are imported where they are used.
"""

from pathlib import Path

__version__ = "0.2.0"

_HERE = Path(__file__).resolve().parent
if not (_HERE / "strategies").is_dir():  # a checkout, or the app that Flower unpacks: both have these folders on top
    __path__.append(str(_HERE.parent))
