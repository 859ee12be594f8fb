"""`python -m ease_flwr` is `ease`."""

from ease_flwr.cli import app

app(prog_name="ease")
