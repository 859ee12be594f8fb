"""What each client has contributed to the global adapters, round by round: the raw material of unlearning.

`CLIENT/ROUND.safetensors` holds the weighted update a_k (theta_k - theta), so that the columns of all clients add up to what
the global adapters moved. Or, with a rank, `CLIENT/sketch.safetensors` holds rank columns U S that stand for all of them: the
incremental singular value decomposition [U S, new] -> its leading part, constant in the number of rounds. Only the server has
either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ease_flwr.config import ConfigError, HistoryConfig


class History:
    """The update history in one folder. How it is kept matters to `append` alone."""

    def __init__(self, folder: Path, config: HistoryConfig | None = None, later: tuple[Path, ...] = ()) -> None:
        """later: folders of later phases, with updates of clients that have joined since."""
        self.folder = folder
        self.config = config or HistoryConfig()
        self.later = later

    def followed_by(self, other: History) -> History:
        """This one, with what a later phase has recorded."""
        return History(self.folder, self.config, (*self.later, other.folder))

    def _files(self, client: str) -> list[Path]:
        """Of a client, in order of rounds."""
        return [f for folder in (self.folder, *self.later) for f in sorted((folder / client).glob("*.safetensors"))]

    def append(self, round: int, client: str, column: NDArray[np.float32]) -> None:
        """Keep one weighted update, float32 (p,)."""
        folder = self.folder / client
        folder.mkdir(parents=True, exist_ok=True)
        if not self.config.rank:
            self._write(folder / f"{round:05d}.safetensors", torch.from_numpy(column)[:, None])
            return
        file = folder / "sketch.safetensors"
        new = torch.from_numpy(column)[:, None].double()
        known = load_file(file)["columns"].double() if file.is_file() else new[:, :0]
        q, r = torch.linalg.qr(torch.cat([known, new], dim=1))
        u, s, _ = torch.linalg.svd(r, full_matrices=False)
        self._write(file, q @ (u * s)[:, : self.config.rank])

    def _write(self, file: Path, columns: torch.Tensor) -> None:
        partial = file.with_suffix(".partial")
        kind = torch.bfloat16 if self.config.half else torch.float32
        save_file({"columns": columns.to(kind).contiguous()}, partial)
        partial.replace(file)

    def columns(self, client: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start to stop of all updates of a client in order of rounds, (stop - start, T), or of its sketch.

        Nothing else is read into memory. Raises ValueError if there are none.
        """
        files = self._files(client)
        if not files:
            raise ValueError(f"no update history of {client} in {self.folder}: it never took part, or it was purged")
        parts = []
        for file in files:
            with safe_open(file, framework="pt") as f:
                parts.append(f.get_slice("columns")[start:stop].T.float())
        return torch.cat(parts).numpy().T

    def knows(self, client: str) -> bool:
        """Whether there are updates of a client: in a small enough share of the rounds it may never have taken part."""
        return bool(self._files(client))

    def rounds(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Round by round, the weighted update (p,) of each client that took part, by name.

        Raises ConfigError where a sketch was kept instead of the rounds.
        """
        if any(self.folder.glob("*/sketch.safetensors")):
            raise ConfigError("this method follows the rounds one by one, the history keeps a sketch: set history.rank=0")
        for number in sorted({f.name for f in self.folder.glob("*/*.safetensors")}):
            files = sorted(self.folder.glob(f"*/{number}"))
            yield {f.parent.name: load_file(f)["columns"][:, 0].float().numpy() for f in files}

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(f.stat().st_size for folder in (self.folder, *self.later) for f in folder.glob("*/*.safetensors"))
