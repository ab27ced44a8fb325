"""Training batches: which examples, in which order, and how they are stacked.

Batch `step` of a run depends on the seed and on `step` alone, so a resumed run sees what an uninterrupted one sees.
Processes that train together have a part each of the batch that one would have; no draw depends on their number.
"""

import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from unloc.child_process import start_worker
from unloc.config import Recipe
from unloc.errors import UnlocError
from unloc.examples.batches import Batch, class_pairs, collate
from unloc.examples.examples import Examples
from unloc.examples.sources import ClassTexts


class Loader(Dataset[Batch | Exception]):
    """Batches of one split. `class_texts` are the texts of class tasks; query examples bring their own.

    Batches are made in `workers` processes ahead of their use, or by the caller (0): they are the same to the bit.
    `share` is the rank of this process among those that train together, and how many these are.
    """

    def __init__(
        self,
        examples: Examples,
        class_texts: ClassTexts | None,
        recipe: Recipe,
        *,
        share: tuple[int, int] = (0, 1),
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """`pin_memory`: batches are in page-locked memory, for copies to a GPU that are not waited for."""
        self.examples, self.class_texts, self.train, self.share = examples, class_texts, recipe.train, share
        self.task, self.loaders = recipe.task, {recipe.task: self}
        self.max_text_tokens, self.workers, self.pin_memory = recipe.data.max_text_tokens, workers, pin_memory
        self._epoch, self._order = -1, []

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.examples) // self.train.batch_size)

    def batches(self, first_step: int, end_step: int) -> Iterator[Batch]:
        """The batches of these steps, counted from the start of training. Workers end when the iterator is closed.
        Raises what reading an example raises, the same with and without workers; RuntimeError where a worker died.
        """
        # Spawned: a fork would copy the locks of threads that it does not copy, as those of stores.
        start = partial(start_worker, signal.SIG_IGN)
        workers = {"multiprocessing_context": "spawn", "worker_init_fn": start} if self.workers else {}
        own = torch.Generator()  # else the loader draws from the generator that dropout draws from
        options = {"num_workers": self.workers, "pin_memory": self.pin_memory, "generator": own, **workers}
        for batch in DataLoader(self, batch_size=None, sampler=range(first_step, end_step), **options):
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def videos(self, step: int) -> list[str]:
        """The videos of the batch of a step, in all processes."""
        return [self.examples.videos[index] for index in self.indices(step)]

    def indices(self, step: int) -> list[int]:
        """The examples of the batch of a step, in all processes."""
        epoch, number = divmod(step, len(self))
        if epoch != self._epoch:
            order = epoch_batches(self.examples.videos, self.train.batch_size, self.train.seed, epoch)
            self._epoch, self._order = epoch, order
        return self._order[number]

    def __getitem__(self, step: int) -> Batch | Exception:
        """The batch of a step, or the error that a user should see: DataLoader would add a worker's traceback to it."""
        try:
            return self.batch(self.indices(step), step // len(self))
        except (UnlocError, OSError) as error:
            return error

    def batch(self, indices: list[int], epoch: int) -> Batch:
        """This process's part of these examples with the random choices (view, crop, jitter, prompts) of an epoch."""
        seed, (rank, count) = self.train.seed, self.share
        rng = np.random.default_rng([seed, epoch, indices[0], 1])
        class_texts = None if self.class_texts is None else self.class_texts.sample(rng)
        total = len(indices)
        first, end = rank * total // count, (rank + 1) * total // count
        indices = indices[first:end]
        examples = [self.examples.example(index, np.random.default_rng([seed, epoch, index])) for index in indices]
        batch = collate(examples, max_text_tokens=self.max_text_tokens, class_texts=class_texts)
        batch = replace(batch, place=(first, total), task=self.task)
        if not self.train.classes_per_video:
            return batch
        present = [e.segment_classes if e.step_classes is None else e.step_classes for e in examples]
        sizes = len(batch.texts), min(self.train.classes_per_video, len(batch.texts))
        rngs = [np.random.default_rng([seed, epoch, index, 2]) for index in indices]
        chosen = [choose_classes(own, *sizes, rng) for own, rng in zip(present, rngs, strict=True)]
        return class_pairs(batch, np.stack(chosen))


class MixedLoader(Loader):
    """Batches of several tasks, each of one task, from its own loader. An epoch has about as many steps as all tasks
    have batches, each task its share by weight (at least one step), else as many as it has batches, in an order drawn
    anew.
    """

    def __init__(self, loaders: dict[str, Loader], weights: dict[str, float], seed: int) -> None:
        """`loaders` and `weights` by task; weights of all tasks, or of none."""
        self.loaders, self.seed = loaders, seed
        first = next(iter(loaders.values()))
        self.workers, self.pin_memory = first.workers, first.pin_memory
        lengths = {task: len(loader) for task, loader in loaders.items()}
        shares, unit = weights or lengths, sum(lengths.values())
        self.counts = {task: max(1, round(unit * shares[task] / sum(shares.values()))) for task in loaders}  # per epoch
        self._epoch, self._order = -1, []

    def __len__(self) -> int:
        """Steps of an epoch."""
        return sum(self.counts.values())

    def place(self, step: int) -> tuple[str, int]:
        """The task of a step, and which of the task's own steps it is."""
        epoch, number = divmod(step, len(self))
        if epoch != self._epoch:
            tasks = [task for task, count in self.counts.items() for _ in range(count)]
            order = np.random.default_rng([self.seed, epoch, 0, 3]).permutation(len(tasks))
            self._epoch, self._order = epoch, [tasks[index] for index in order]
        task = self._order[number]
        return task, epoch * self.counts[task] + self._order[:number].count(task)

    def videos(self, step: int) -> list[str]:
        """The videos of the batch of a step, in all processes."""
        task, own_step = self.place(step)
        return self.loaders[task].videos(own_step)

    def __getitem__(self, step: int) -> Batch | Exception:
        """The batch of a step, or the error that a user should see."""
        task, own_step = self.place(step)
        return self.loaders[task][own_step]


def epoch_batches(videos: list[str], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Example indices of one epoch in ceil(n / batch_size) batches of nearly equal size, shuffled.

    `videos` has the video of each example. No video is twice in a batch (as far as there are more batches than examples
    of one video): with in-batch negatives another caption of the same video would be a false negative.
    """
    rng = np.random.default_rng([seed, epoch])
    by_video: dict[str, list[int]] = {}
    for index in rng.permutation(len(videos)):
        by_video.setdefault(videos[index], []).append(int(index))
    dealt = [index for indices in by_video.values() for index in indices]
    num_batches = -(-len(videos) // batch_size)
    batches = [dealt[start::num_batches] for start in range(num_batches)]
    return [batches[number] for number in rng.permutation(num_batches)]


def choose_classes(present: np.ndarray, num_classes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) different class indices: those present (all, or a random part of them), then random others."""
    present = rng.permutation(np.unique(present[present >= 0]))[:count]
    others = rng.permutation(np.setdiff1d(np.arange(num_classes), present))
    return np.concatenate([present, others[: count - len(present)]]).astype(np.int64)
