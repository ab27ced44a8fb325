"""A training step of UnLoc-B: seconds, arithmetic per second, and its share of what a matrix product reaches here.

Claim (issue 3): forward and backward of fusion, pyramid and heads over 4 videos x 4 texts of 128 frames, float32 on a
CPU, runs at 0.75 of the rate of a large matrix product or more. For scale: the official JAX step (359 GFLOP for 16
fused sequences) took 1.7 s on 4 such cores at best, about 0.6. With --device cuda: bfloat16, 64 x 64 moment retrieval
pairs and 64 videos x 200 classes; aim 0.5.

Every step is measured right after products of the same arithmetic; the share is the median, over the rounds, of their
time over its time. What else runs on the machine so slows both. Counted is the arithmetic of matrix products,
convolutions and attention of one forward and backward pass; what activation checkpointing repeats is not.

    taskset -c 2,3 python benchmarks/model_step.py [--device cpu] [--threads N] [--rounds 10] [--json OUT]
"""

import argparse
import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unloc.config import ModelConfig
from unloc.model.unloc import UnLoc

STEPS, TEXT_TOKENS, WIDTH = 128, 16, 512
aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """One step to measure: every video with every text."""

    name: str
    videos: int
    texts: int
    config: ModelConfig


BASE = ModelConfig(text_tokens="eos")
CPU_CASES = (
    Case("4 videos x 4 texts, EOS alone", 4, 4, BASE),
    Case("4 videos x 4 texts, all 16 tokens", 4, 4, replace(BASE, text_tokens="all")),
)
CUDA_CASES = (
    Case("MR, 64 x 64 pairs", 64, 64, replace(BASE, max_texts_in_flight=8)),
    Case("TAL, 64 videos x 200 classes", 64, 200, replace(BASE, num_head_convs=4, max_texts_in_flight=8)),
)


def attention_flops(query: tuple, key: tuple, *, products: int) -> int:
    """Products of (queries x channels x keys), each two operations an element: 2 forward, 5 backward."""
    batch, heads, queries, channels = query
    return products * 2 * batch * heads * queries * key[2] * channels


COUNTED = {  # beside what torch counts itself on every version
    aten.addmm_: lambda out, left, right, **options: 2 * left[0] * left[1] * right[1],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *rest, **kw: attention_flops(q, k, products=2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, *rest, **kw: attention_flops(
        q, k, products=5
    ),
}


def inputs_of(case: Case, device: torch.device) -> tuple[Tensor | None, ...]:
    """Frames and texts, without masks: everything valid."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(case.videos, STEPS, WIDTH, generator=generator).to(device)
    texts = torch.randn(case.texts, TEXT_TOKENS, WIDTH, generator=generator).to(device)
    return frames, None, texts, None


def train_step(model: nn.Module, inputs: tuple[Tensor | None, ...]) -> None:
    """Forward and backward; gradients start from nothing, as in training."""
    for parameter in model.parameters():
        parameter.grad = None
    device = inputs[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        outputs = model(*inputs)
    (outputs.relevance.float().square().mean() + outputs.displacements.float().square().mean()).backward()


def flops_of(case: Case) -> int:
    """Operations of one step with one chunk of texts, on this machine's CPU, scaled to the case."""
    model = UnLoc(replace(case.config, max_texts_in_flight=0), WIDTH, WIDTH, STEPS)
    counts = []
    for texts in (1, 2):  # linear in the texts: a part for frames alone, and so much for each text
        with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            train_step(model, inputs_of(replace(case, videos=1, texts=texts), torch.device("cpu")))
        counts.append(counter.get_total_flops())
    return case.videos * (counts[0] + (case.texts - 1) * (counts[1] - counts[0]))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


class Product:
    """A large square matrix product of the step's precision, into memory that is there already."""

    def __init__(self, device: torch.device) -> None:
        size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
        self.left, self.right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        self.out, self.flops = torch.empty_like(self.left), 2 * size**3

    def __call__(self) -> None:
        torch.mm(self.left, self.right, out=self.out)


class PeakMemory:
    """Bytes that a piece of work needed on top of what was held before it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # glibc: what is free goes back, so that it is not counted as held
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
            self.before = _status_bytes("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        cuda = self.device.type == "cuda"
        self.bytes = (torch.cuda.max_memory_allocated(self.device) if cuda else _status_bytes("VmHWM")) - self.before


def _status_bytes(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def measure(case: Case, device: torch.device, rounds: int, *, compiled: bool) -> dict:
    """One case on one device, eager and, where asked for, compiled."""
    torch.manual_seed(0)
    model = UnLoc(case.config, WIDTH, WIDTH, STEPS).to(device)
    inputs, product, flops = inputs_of(case, device), Product(device), flops_of(case)
    variants = {"eager": model} | ({"torch.compile": torch.compile(model)} if compiled else {})
    rows = {name: {"first_seconds": _seconds(variant, inputs, device)} for name, variant in variants.items()}
    for name, variant in variants.items():
        rows[name]["peak_mib"] = _peak(variant, inputs, device) / 2**20
    repeats = max(1, round(flops / product.flops))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            of_products = seconds_of(lambda: [product() for _ in range(repeats)], device)
            taken[name].append((of_products, _seconds(variant, inputs, device)))
    for name, pairs in taken.items():
        fastest = min(step for _, step in pairs)
        shares = [of_products * flops / (repeats * product.flops * step) for of_products, step in pairs]
        rows[name] |= {"seconds": fastest, "gflops": flops / fastest / 1e9, "share": statistics.median(shares)}
        rows[name] |= {"shares": shares}
    rate = repeats * product.flops / min(of_products for pairs in taken.values() for of_products, _ in pairs)
    return {"case": case.name, "gflop": flops / 1e9, "product_gflops": rate / 1e9, "variants": rows}


def _seconds(model: nn.Module, inputs: tuple[Tensor | None, ...], device: torch.device) -> float:
    return seconds_of(lambda: train_step(model, inputs), device)


def _peak(model: nn.Module, inputs: tuple[Tensor | None, ...], device: torch.device) -> int:
    with PeakMemory(device) as memory:
        train_step(model, inputs)
    return memory.bytes


def report(result: dict) -> None:
    """One case as lines."""
    print(f"\n{result['case']}: {result['gflop']:.0f} GFLOP; a product reaches {result['product_gflops']:.0f} GFLOP/s")
    for name, row in result["variants"].items():
        shares = f"share {row['share']:.2f} ({min(row['shares']):.2f} to {max(row['shares']):.2f})"
        times = f"{row['seconds']:7.3f} s (first {row['first_seconds']:.1f})  {row['gflops']:8.0f} GFLOP/s"
        print(f"  {name:14} {times}  {shares}  {row['peak_mib']:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees no CUDA device here; use cpu")
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} CPU threads"
    print(f"torch {torch.__version__}, {what}")
    cases = CUDA_CASES if device.type == "cuda" else CPU_CASES
    results = []
    for case in cases:
        results.append(measure(case, device, args.rounds, compiled=not args.no_compile))
        report(results[-1])
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "device": what, "results": results}, indent=1))


if __name__ == "__main__":
    main()
