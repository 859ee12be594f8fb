"""Fine-tuning: the retained clients go on learning and what is not repeated is expected to fade.

The weakest baseline of machine unlearning, and the control that shows what forgetting rounds do without a method.
"""

from __future__ import annotations

from ease_flwr.strategies.base import Method


class Finetune(Method):
    """Continue ordinary federated learning without what is to be forgotten."""
