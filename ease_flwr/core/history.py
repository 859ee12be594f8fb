"""What each client has contributed to the global adapters, round by round: the raw material of unlearning.

One file a client and round, `CLIENT/ROUND.safetensors`, holding the weighted update a_k (theta_k - theta), so that the
columns of all clients add up to what the global adapters moved. Only the server has it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file


class History:
    """The update history in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, round: int, client: str, column: NDArray[np.float32]) -> None:
        """Keep one weighted update, float32 (p,)."""
        folder = self.folder / client
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{round:05d}.partial"
        save_file({"column": np.ascontiguousarray(column)}, partial)
        partial.replace(folder / f"{round:05d}.safetensors")

    def columns(self, client: str) -> NDArray[np.float32]:
        """All updates of a client in order of rounds, (p, T). Raises ValueError if there are none."""
        files = sorted((self.folder / client).glob("*.safetensors"))
        if not files:
            raise ValueError(f"no update history of {client} in {self.folder}: it never took part")
        return np.stack([load_file(f)["column"] for f in files], axis=1)
