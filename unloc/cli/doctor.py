"""`unloc doctor`: what is installed here, what is missing, and how to get it."""

import importlib
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from unloc import __version__
from unloc.cli import app
from unloc.errors import one_line

REQUIRED = {  # package: what it is for
    "torch": "models",
    "torchvision": "augmentation",
    "open_clip_torch": "towers",
    "zarr": "the cache",
    "av": "decoding (PyAV), needed by every command that reads videos",
    "ray": "extraction and training in several processes",
    "webdataset": "tar shards",
}
OPTIONAL = {  # package: what it is for, how to get it
    "decord": ("the second decoder; PyAV takes its place", "pip install decord"),
    "wandb": ("fit --wandb", "pip install 'unloc[wandb]'"),
    "tensorboard": ("curves in TensorBoard", "pip install 'unloc[track]'"),
    "transformers": ("T5 text towers", "pip install 'unloc[t5]'"),
    "h5py": ("features in HDF5 files", "pip install 'unloc[hdf5]'"),
    "gradio": ("unloc serve", "pip install 'unloc[serve]'"),
    "s3fs": ("caches and videos in S3 buckets", "pip install 'unloc[s3]'"),
}
LEAST_GIB = 1


@app.command()
def doctor() -> None:
    """Print versions, devices, decoders and disk; what is missing, and how to get it. Exit code 1 where it is needed.

    Example: unloc doctor
    """
    problems = []
    typer.echo(f"unloc {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package, purpose in REQUIRED.items():
        if not (found := _version(package)):
            problems.append(f"{package} is missing ({purpose}): pip install {package}")
        typer.echo(f"  {package:16} {found or 'MISSING'}")
    for package, (purpose, advice) in OPTIONAL.items():
        typer.echo(f"  {package:16} {_version(package) or f'not installed; for {purpose}: {advice}'}")
    for package in filter(_version, ("av", "decord", "torchvision")):
        try:
            importlib.import_module(package)
        except (ImportError, OSError) as error:  # installed, but broken; OSError: a shared library is missing
            problems.append(f"{package} cannot be imported: {one_line(error)}")
    typer.echo("devices")
    for line in _devices() if _version("torch") else ():
        typer.echo(f"  {line}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    typer.echo(f"  {len(os.sched_getaffinity(0))} CPU cores, {memory:.0f} GiB of memory")
    typer.echo("disk")
    for what, folder in {"here": Path.cwd(), "home (tokens of predict, weights)": Path.home()}.items():
        free = shutil.disk_usage(folder).free / 2**30
        typer.echo(f"  {free:8.1f} GiB free {what}: {folder}")
        if free < LEAST_GIB:
            problems.append(f"{folder} has {free:.1f} GiB free: extraction and checkpoints need more")
    for problem in problems:
        typer.echo(f"problem: {problem}", err=True)
    typer.echo("nothing is missing" if not problems else f"{len(problems)} problems")
    raise typer.Exit(1 if problems else 0)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    count = torch.cuda.device_count()
    if not count:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
        return [f"no GPU is seen ({built}): training and extraction run on the CPU"]
    names = ((index, torch.cuda.get_device_properties(index)) for index in range(count))
    return [f"cuda:{index} {found.name}, {found.total_memory / 2**30:.0f} GiB" for index, found in names]
