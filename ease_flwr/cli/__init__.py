"""The command line: `ease`. Light: torch and flwr are imported where a command needs them."""

from ease_flwr.cli.main import app

__all__ = ["app"]
