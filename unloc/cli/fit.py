"""`unloc fit` and `unloc pretrain`: train a recipe on a cache or on frames."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from unloc.cli import app
from unloc.cli.progress import progress, shown_warnings
from unloc.errors import InputError, TowerError

if TYPE_CHECKING:
    from unloc.config import Recipe


PRETRAIN = """Train on labelled clips, such as Kinetics: which of all class names does a video show (paper §4.1.2).

    Options are those of `unloc fit`, whose runs start from this one (--init RUN). On frames the image tower trains too;
    `unloc extract --tower RUN` then makes a cache with it.

    Example: unloc pretrain synth_cls train.batch_size=4 train.epochs=1 --manifest data/clips.jsonl
    --frames data/clip_frames --work-dir runs/clips
"""


@app.command("pretrain", help=PRETRAIN)
@app.command()
def fit(
    context: typer.Context,
    recipe: Annotated[str, Argument(help="Shipped recipe (synth_mr, charades_b, …), own, or a YAML path.")],
    overrides: Annotated[list[str] | None, Argument(help="Dotted overrides: optim.lr=0.01 train.epochs=5.")] = None,
    manifest: Annotated[list[str] | None, Option("--manifest", "-m", help="Manifest with the training split.")] = None,
    cache: Annotated[list[str] | None, Option("--cache", "-c", help="Cache of `unloc extract`, or URL.")] = None,
    frames: Annotated[list[str] | None, Option(help="In place of --cache: `unloc data pack --frames`' folder.")] = None,
    videos: Annotated[list[str] | None, Option(help="The same: folder of video files, decoded at each use.")] = None,
    work_dir: Annotated[Path | None, Option(help="Run folder to write.")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    change_optim: Annotated[bool, Option("--change-optim", help="With --resume: use and record new optim.*")] = False,
    init: Annotated[str | None, Option(help="Run, model folder or Hub name to start from, any task; or toy.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Delete the run folder first.")] = False,
    device: Annotated[str, Option(help="auto (CUDA if there is one), cpu, cuda:1, …")] = "auto",
    threads: Annotated[int, Option(min=0, help="CPU threads of each process; 0: all cores.")] = 0,
    loader_workers: Annotated[int | None, Option(min=0, help="Processes to prepare batches (GPU: 4, CPU: 0).")] = None,
    wandb: Annotated[str | None, Option(help="Project of Weights & Biases to log to as well (extra wandb).")] = None,
    workers: Annotated[int, Option(min=1, help="Processes that share each batch; on GPUs, one on each.")] = 1,
    address: Annotated[str | None, Option(help="Ray cluster for them: auto, or host:port. Default: here.")] = None,
    timeout: Annotated[float, Option(min=1, max=1e6, help="Seconds after which a silent process is lost.")] = 600.0,
    print_config: Annotated[bool, Option("--print-config", help="Print the resolved recipe and its size.")] = False,
) -> None:
    """Train fusion, pyramid and heads, and the towers that the recipe finetunes, on a cache or on frames.

    A recipe of several tasks takes --manifest TASK=FILE for each, and one --cache for all or TASK=CACHE for each.
    Recipe own takes task, splits, batch, steps and epochs from the manifest, its cache and this machine.

    Example: unloc fit synth_mr --manifest data/mr.jsonl --cache data/cache --work-dir runs/mr
    """
    from unloc.recipes import dump_recipe, load_recipe

    command = context.info_name
    if recipe == "own" and resume and work_dir is not None and (work_dir / "recipe.yaml").is_file():
        recipe = str(work_dir / "recipe.yaml")  # as it was chosen; measured again it could be another
    if recipe == "own":
        if not manifest or not cache or len(manifest) + len(cache) > 2:
            raise InputError(f"unloc {command} own: needs one --manifest and its --cache")
        from unloc.training.own import own_recipe

        with shown_warnings("unloc"):
            resolved = own_recipe(Path(manifest[0]), cache[0], overrides or [], device=device, threads=threads)
    else:
        resolved = load_recipe(recipe, overrides or [])
    if command == "pretrain" and resolved.task != "cls":
        raise InputError(f"unloc pretrain: recipe {resolved.name} is of task {resolved.task}, not cls: use unloc fit")
    if print_config:
        typer.echo(dump_recipe(resolved) + _parameter_comment(resolved))
        return
    kinds = {"cache": cache, "frames": frames, "videos": videos}
    given = {kind: data for kind, data in kinds.items() if data}
    if not manifest or len(given) != 1 or work_dir is None:
        raise InputError(f"unloc {command}: --manifest, --work-dir and one of --cache, --frames, --videos are needed")
    [(kind, data)] = given.items()
    manifest, data = _by_task(resolved, "--manifest", manifest), _by_task(resolved, f"--{kind}", data)
    from unloc.synth import toy_unloc_folder

    first = next(iter(resolved.tasks), resolved.task)
    start = toy_unloc_folder(first) if init == "toy" else init and Path(init)  # a folder called toy: ./toy
    options = {"resume": resume, "overwrite": overwrite, "change_optim": change_optim, "init": start}
    options |= {"device": device, "threads": threads, "loader_workers": loader_workers, "kind": kind, "wandb": wandb}
    if workers == 1 and address is None:
        from unloc.training.run import fit_recipe as fit_run
    else:
        options |= {"workers": workers, "address": address, "timeout": timeout}
        try:
            from pipeline.fit import fit as fit_run
        except ImportError as error:  # an environment from before `ray[train]` was needed
            raise InputError(f"--workers: Ray Train cannot be used ({error}); pip install 'ray[train]'") from None
    with shown_warnings("unloc"), progress("training", "steps") as report:

        def on_step(step: int, total: int, now: dict) -> None:
            report(step, total, loss=f"{now['loss']:.3f}", lr=f"{now['lr']:.1e}")

        metrics = fit_run(resolved, manifest, data, work_dir, **options, on_step=on_step)
    for key, value in metrics.items():
        typer.echo(f"{key:28} {value:8.2f}")
    typer.echo(f"run: {work_dir} ({resolved.name})")


def _by_task(recipe: "Recipe", option: str, values: list[str]) -> str | dict[str, str]:
    """The value of an option; of a recipe of several tasks that of each: its own TASK=VALUE, else the one for all."""
    tasks = recipe.tasks or {recipe.task: None}
    own = {task: rest for task, _, rest in (value.partition("=") for value in values) if recipe.tasks and task in tasks}
    for_all = [value for value in values if not own or value.partition("=")[0] not in own]
    if len(for_all) > 1 or len(own) + len(for_all) != len(values) or not (for_all or own.keys() == tasks.keys()):
        of_each = f"{option} TASK=… for each of its tasks {', '.join(tasks)}, or " if recipe.tasks else ""
        problem = f"got {', '.join(values)} for recipe {recipe.name}"
        raise InputError(f"{option}: {problem}; expected {of_each}one {option} without a task")
    return {task: own.get(task, *for_all) for task in tasks} if recipe.tasks else for_all[0]


def _parameter_comment(recipe: "Recipe") -> str:
    """Parameter counts as YAML comments, so that the output stays a recipe."""
    from unloc.model.build import counted_parameters

    try:
        counts = counted_parameters(recipe)
    except TowerError as error:
        return f"# parameters: not counted: {error}"
    total = counts.pop("total")
    heads = sum(count for part, count in counts.items() if part.endswith("_head"))
    live = " and ".join(tower for tower in ("image", "text") if getattr(recipe.towers, tower) != "cached")
    title = f"with the {live} tower of {recipe.towers.name}" if live else "without towers: they are cached"
    title += "; heads for one class" if recipe.model.fusion == "none" else ""
    lines = [f"#   {part:18} {count:>12,}" for part, count in {**counts, "all heads": heads, "total": total}.items()]
    return "\n".join([f"# parameters ({title}):", *lines])
