"""The cases of model.npz and of the official tensors of the same names."""

import numpy as np
import torch
from torch import Tensor


def case(scenic: dict[str, np.ndarray], name: str) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """A case's parameters in their official names, and its inputs and outputs."""
    held = {key.removeprefix(f"{name}/"): value for key, value in scenic.items() if key.startswith(f"{name}/")}
    params = {key.removeprefix("params/"): value for key, value in held.items() if key.startswith("params/")}
    return params, {key: torch.from_numpy(np.array(held[key])) for key in held if not key.startswith("params/")}
