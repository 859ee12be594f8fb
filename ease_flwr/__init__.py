"""ease_flwr: make a federated image-text model forget, and show what is left of it.

Importing this package is free: torch, open_clip and flwr are imported where they are used.
"""

__version__ = "0.2.0"
