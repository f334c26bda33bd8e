"""Which examples of each batch a rank computes."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from fcn_deploy.training.distributed import Ranks
from fcn_deploy.training.examples import Draw, Shuffle


class Shares(Sampler[list[Draw]]):
    """One rank's part of each batch: what the ranks have together is the batch of one process.

    Args:
        draws: What comes, in order.
        batch_size: Examples of a batch, over all ranks; no fewer than ranks.
        ranks: Which rank.
    """

    def __init__(self, draws: Shuffle, batch_size: int, ranks: Ranks) -> None:
        self._draws = draws
        self._ranks = ranks
        # A last small batch would weigh as much as a full one, and upset batch norm.
        self.size = min(batch_size, len(draws))
        """Examples of a batch, over all ranks; the last few of an epoch, if fewer, are left out."""

    def __len__(self) -> int:
        return len(self._draws) // self.size if self.size else 0

    def __iter__(self) -> Iterator[list[Draw]]:
        order = list(self._draws)
        for number in range(len(self)):
            batch = order[number * self.size : (number + 1) * self.size]
            yield batch[self._ranks.rank :: self._ranks.world]
