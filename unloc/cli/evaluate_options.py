"""The options of `unloc eval`, each with its sentence of help."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path | None, typer.Argument(help="Run folder or checkpoint; leave out with --predictions.")]
ManifestFile = Annotated[Path | None, typer.Option("--manifest", "-m", help="Manifest with the annotations.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", "-c", help="Cache of the videos: tokens for RUN and --baseline, durations for all."),
]
Split = Annotated[str, typer.Option("--split", help="Split to evaluate.")]
TrainSplit = Annotated[
    str | None, typer.Option("--train-split", help="Split that blind floors are fitted on (train, training, …).")
]
Predictions = Annotated[Path | None, typer.Option("--predictions", help="File to score; no model, no torch.")]
Baseline = Annotated[bool, typer.Option("--baseline", help="Score the tower's similarity, without training.")]
FloorsOnly = Annotated[bool, typer.Option("--floors-only", help="Score blind constants only.")]
TaskName = Annotated[str | None, typer.Option("--task", help="mr, tal, as or hd (with --predictions).")]
Protocol = Annotated[str | None, typer.Option("--protocol", help="Official variant of the metric.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse to score bad predictions.")]
Intervals = Annotated[bool, typer.Option("--intervals", help="95 % bootstrap intervals over videos.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the intervals' draws.")]
ExternalLabels = Annotated[
    bool, typer.Option("--external-labels", help="State that labels of another model were used.")
]
Without = Annotated[
    list[Path] | None,
    typer.Option("--without", help="List of blocked videos, left out on both sides."),
]
Only = Annotated[list[Path] | None, typer.Option("--only", help="List of the only videos to score.")]
Export = Annotated[Path | None, typer.Option("--export", help="Write the predictions: .json, .jsonl, .zip or .csv.")]
Analyse = Annotated[bool, typer.Option("--analyse", help="Kinds of false positives, what is missed; plots into --out.")]
ZeroShot = Annotated[
    Path | None, typer.Option("--zero-shot", help="Folder of class splits: score the unseen classes of each.")
]
Vocabulary = Annotated[
    list[Path] | None, typer.Option("--vocabulary", help="Names the tower was pretrained on (with --zero-shot).")
]
Control = Annotated[
    Path | None, typer.Option("--control", help="Predictions for nonsense class names (with --zero-shot).")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder (or metrics.json) to write.")]
Device = Annotated[str, typer.Option("--device", help="auto (CUDA if there is one), cpu, cuda:1, …")]
