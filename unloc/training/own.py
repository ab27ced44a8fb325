"""`unloc fit own`: a recipe for data that no shipped one was made for, from manifest, cache and machine.

The model is that of the rendered world, which learns from hundreds of examples on a CPU. Splits, batch, steps of an
example and epochs follow from the data, and the time that a step takes here.
"""

import logging
import math
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from unloc.annotations.schema import load_manifest
from unloc.config import Recipe
from unloc.errors import InputError
from unloc.inference.device import computing, resolve_device
from unloc.recipes import load_recipe, stated_values
from unloc.tasks import task_named
from unloc.training.inputs import load_inputs
from unloc.training.objective import part_losses, split_batch
from unloc.training.run import build_trainer
from unloc.training.trainer import Trainer

logger = logging.getLogger(__name__)
TRAINING, VALIDATION = ("train", "training"), ("val", "validation", "valid", "dev")
BATCH_SIZES = {"mr": 32, "hd": 32, "tal": 4, "as": 4, "cls": 16}
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 1000, 5, 100
AIM_SECONDS, LIMIT_SECONDS = 3600.0, 24 * 3600.0


def own_recipe(
    manifest: Path, cache: Path | str, overrides: Sequence[str] = (), *, device: str = "auto", threads: int = 0
) -> Recipe:
    """The recipe for a manifest and its cache, with `key=value` overrides on top; logs what it chose and how long it
    will take: some 1,000 steps in 5 to 100 epochs, fewer where they would take over an hour. Raises InputError where
    the manifest serves several tasks and none is chosen, has no training split, or training would take over a day.
    """
    stated, rows = stated_values(overrides), load_manifest(manifest)
    if "task" not in stated and len(rows.tasks) != 1:
        raise InputError(f"{manifest}: serves tasks {', '.join(rows.tasks)}; choose one, such as task={rows.tasks[0]}")
    task = stated.get("task", rows.tasks[0])
    values = [f"name=own_{task}", f"task={task}", "data.max_text_tokens=77", "train.epochs=1", "train.batch_size=1"]
    values += ["data.null_queries=true"] if task_named(task).text_kind == "query" else []
    for key, names in {"train_split": TRAINING, "val_split": VALIDATION}.items():
        name = next((name for name in names if name in rows.splits), "")
        if not name and key == "train_split" and key not in stated.get("data", {}):
            problem = f"has no split called train, but {', '.join(rows.splits)}"
            raise InputError(f"{manifest}: {problem}; add data.train_split=NAME")
        values.append(f"data.{key}={name}")
    base = f"synth_{task_named(task).name}"
    recipe = load_recipe(base, [*values, *overrides])
    inputs = load_inputs(recipe, manifest, cache, "cache")
    train, val, source = inputs[task].train, inputs[task].val, inputs[task].source
    count = len(build_trainer(recipe, inputs, Path()).loader.examples)
    frames = [len(source.frames(video_id, None)[1]) for video_id in train.videos["video_id"] if video_id in source]
    num_steps = min(32 * math.ceil(np.median(frames) / 32), recipe.data.num_steps)
    values += [f"data.num_steps={num_steps}", f"train.batch_size={min(BATCH_SIZES[task], count)}"]
    recipe = load_recipe(base, [*values, *overrides])

    used = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    trainer = build_trainer(recipe, inputs, Path(), device=used)
    seconds, steps = seconds_per_step(trainer), len(trainer.loader)
    wanted = round(np.clip(min(STEPS / steps, AIM_SECONDS / (seconds * steps)), LEAST_EPOCHS, MOST_EPOCHS))
    epochs = stated.get("train", {}).get("epochs", wanted)
    total = math.ceil(epochs * steps)
    if total * seconds > LIMIT_SECONDS:
        problem = f"{epochs:g} epochs of {count} examples would take {total * seconds / 3600:.0f} hours on {used}"
        raise InputError(f"{manifest}: {problem}; train on a GPU, on fewer examples, or for fewer train.epochs")
    values += [f"train.epochs={epochs}", f"train.eval_every_epochs={max(1.0, epochs / 4):g}"]
    recipe = load_recipe(base, [*values, *overrides])
    held_out = f"{len(val.videos)} ({recipe.data.val_split})" if val is not None else "no"
    data = f"{count} examples of {len(train.videos)} videos ({recipe.data.train_split}); validated on {held_out} videos"
    sizes = f"{num_steps} steps an example, {recipe.train.batch_size} examples a batch, {epochs:g} epochs"
    logger.warning("task %s, %s", task, data)
    logger.warning("%s: %d batches, about %s on %s", sizes, total, timedelta(seconds=math.ceil(total * seconds)), used)
    return recipe


def seconds_per_step(trainer: Trainer) -> float:
    """Seconds of forward and backward pass of a batch, the faster of two. Leaves the weights as they are."""
    found = []
    for batch in trainer.loader.batches(0, 2):
        began = time.perf_counter()
        batch = batch.to(trainer.device)
        for part in split_batch(batch, trainer.recipe, trainer.recipe.train.accumulate):
            with computing(trainer.device, trainer.recipe.train.precision):
                loss = part_losses(trainer.model, part, trainer.recipe)["loss"]
            loss.backward()
        loss.item()  # waits for a GPU
        found.append(time.perf_counter() - began)
    return min(found)
