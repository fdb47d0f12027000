"""Training in several single-threaded processes that average their gradients once a step.

On a machine shared with other work this is far faster than as many threads in one process: those
meet several times in each of a thousand operators, and whenever one has lost its core all wait.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import torch
import torch.distributed


class Replicas:
    """This process's place among its like; with a count of 1 nothing is exchanged.

    Args:
        rank: of this process, from 0.
        count: how many there are.
        port: of the loopback address at which they meet.
    """

    def __init__(self, rank: int = 0, count: int = 1, port: int = 0) -> None:
        self.rank = rank
        self.count = count
        if count > 1:
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"tcp://127.0.0.1:{port}",
                rank=rank,
                world_size=count,
                timeout=datetime.timedelta(hours=1),
            )

    def share(self, total: int) -> slice:
        """This process's part of a batch."""
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def average(self, tensors: Sequence[torch.Tensor], extra: Sequence[float]) -> list[float]:
        """Averages tensors in place and a few numbers beside them over all processes."""
        if self.count == 1:
            return list(extra)
        parts = [*(tensor.reshape(-1) for tensor in tensors), torch.tensor(list(extra))]
        flat = torch.cat(parts)
        torch.distributed.all_reduce(flat)
        flat /= self.count
        pieces = torch.split(flat, [part.numel() for part in parts])
        for tensor, piece in zip(tensors, pieces):
            tensor.copy_(piece.view_as(tensor))
        return [float(value) for value in pieces[-1]]
