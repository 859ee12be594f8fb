"""Weight negation: turn the first layers round and let the retained clients repair the rest.

NoT, Khalil et al., CVPR 2025: negate the weights of the first layer(s) of the global model, which breaks what follows, and
fine-tune on retained data. Adapted: the backbone is frozen and was never trained on what is to be forgotten, so it is the
update of the first adapted modules of both towers that is negated, B -> -B, hence Delta W -> -Delta W. Our re-implementation
from the paper's description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ease_flwr.strategies.base import Method, PhaseParams, Vector

from ease_flwr.config import searched

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Negate(Method):
    """Negate the adapters of the first modules of both towers, then fine-tune (NoT)."""

    class Params(PhaseParams):
        modules: int = searched(1, (1, 2, 4, 8), ge=1)
        """Modules of each tower that are negated, from the input on; a transformer block has four."""

    def prepare(self, theta: Vector, history: History) -> Vector:
        theta = theta.copy()
        for tower in ("visual", "text"):
            second = [b for b in self.context.blocks if b.tower == tower and "lora_B" in b.name]
            for block in second[: self.params.modules]:
                theta[block.start : block.stop] *= -1
        return theta
