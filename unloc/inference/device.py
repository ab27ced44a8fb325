"""Where a model computes and in what precision: one answer for extract, fit and eval."""

from contextlib import AbstractContextManager, nullcontext

import torch

from unloc.errors import InputError


def resolve_device(name: str) -> torch.device:
    """The device of that name, `auto` the first CUDA device or the CPU. Raises InputError where torch has it not."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.device_count() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise InputError(f"--device: {name} asked for, but torch sees {seen} CUDA devices here; use auto or cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """`train.precision` as it is on a device: `auto` is bf16 on CUDA devices with fast bfloat16, elsewhere fp32."""
    if name != "auto":
        return name
    is_fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)  # the first with bf16 units
    return "bf16" if is_fast else "fp32"


def computing(device: torch.device, precision: str) -> AbstractContextManager:
    """Context in which a model runs in `train.precision`: bf16 is autocast; fp32 may use TF32 on CUDA."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    is_bf16 = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext()


def described(device: torch.device, precision: str) -> dict[str, str]:
    """What was used, for a run's record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "precision": resolve_precision(precision, device)}
