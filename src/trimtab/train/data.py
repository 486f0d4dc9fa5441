"""Batches in an order that depends only on a seed, with a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from trimtab.errors import ShapeError


@runtime_checkable
class ResumableIterator(Protocol):
    """An iterator that can tell and take its position, as Grain's iterators do."""

    def __next__(self) -> Any:
        """Return the next batch."""
        ...

    def get_state(self) -> Any:
        """Return the position as a JSON value."""
        ...

    def set_state(self, state: Any) -> None:
        """Continue from a position."""
        ...


class ShuffledBatches:
    """Whole batches of in-memory arrays by number, each epoch in a new order.

    Batch i belongs to epoch i // batches; an epoch is one permutation of the examples, and what
    does not fill its last batch is left out of that epoch. It is a Grain random-access source:
    gathering a whole batch at once costs far less than batching single examples.

    Args:
        arrays: arrays with the examples on their leading axis.
        batch_size: examples a batch.
        seed: the order depends on it and the epoch alone.
        epochs: how many; practically endless by default.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], batch_size: int, *, seed: int, epochs: int = 2**20
    ) -> None:
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ShapeError(f"Arrays of one data set must be equally long, got {sizes}.")
        self._arrays = dict(arrays)
        self._examples = next(iter(sizes.values()))
        if not 1 <= batch_size <= self._examples:
            raise ShapeError(
                f"A batch of {batch_size} examples cannot be drawn from {self._examples}. "
                f"Choose a batch size between 1 and {self._examples}."
            )
        self._batch_size = batch_size
        self._seed = seed
        self._epochs = epochs
        self.batches_per_epoch = self._examples // batch_size
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.batches_per_epoch * self._epochs

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, batch = divmod(int(index), self.batches_per_epoch)
        rows = self._permutation(epoch)[batch * self._batch_size : (batch + 1) * self._batch_size]
        return {name: array[rows] for name, array in self._arrays.items()}

    def _permutation(self, epoch: int) -> np.ndarray:
        order = self._order
        if order is None or order[0] != epoch:
            order = epoch, np.random.default_rng((self._seed, epoch)).permutation(self._examples)
            self._order = order
        return order[1]


def batch_iterator(source: Any, *, threads: int = 1, ahead: int = 2) -> ResumableIterator:
    """Return a Grain iterator over a random-access source of batches.

    Args:
        source: has ``__len__`` and ``__getitem__`` giving a batch.
        threads: threads that read ahead; 0 reads when asked.
        ahead: batches kept ready.
    """
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def training_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int, *, seed: int, threads: int = 1
) -> ResumableIterator:
    """Return an endless resumable iterator over shuffled batches of in-memory arrays.

    >>> batches = training_batches({"x": np.arange(6)}, 3, seed=0, threads=0)
    >>> sorted([*next(batches)["x"].tolist(), *next(batches)["x"].tolist()])
    [0, 1, 2, 3, 4, 5]
    """
    return batch_iterator(ShuffledBatches(arrays, batch_size, seed=seed), threads=threads)


def evaluation_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yield every example once, in order: batches of one shape and how many examples count.

    The last batch is filled up with copies of its first example, so that one compiled function
    serves all.
    """
    examples = len(next(iter(arrays.values())))
    for start in range(0, examples, batch_size):
        rows = np.arange(start, min(start + batch_size, examples))
        count = len(rows)
        rows = np.concatenate([rows, np.full(batch_size - count, start)])
        yield {name: array[rows] for name, array in arrays.items()}, count
