"""A model for any video file: what `unloc.load` returns and `unloc predict` runs.

model = unloc.load("runs/mr")                      # or "toy", or "none" with a tower: similarity without training
found = model.predict("film.mp4", ["a red ball falls"])
for moment in found: print(moment.start, moment.end, moment.score, moment.text)
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np

from unloc.annotations.own import video_id_of
from unloc.cache.dtype import from_stored
from unloc.cache.reading import CachedVideo
from unloc.callbacks import OnProgress
from unloc.errors import InputError
from unloc.examples.sources import ClassTexts, VideoFrames
from unloc.inference.device import resolve_device
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.file_tokens import FileTokens
from unloc.inference.load import LoadedModel, load_model, local_run, model_for_classes, require_same_cache
from unloc.inference.predict import encode_texts, predict_frames
from unloc.inference.run_tower import run_of_tower
from unloc.inference.similarity import not_embeddings, segments_above, similarity_to
from unloc.inference.video_prediction import Moment, VideoPrediction
from unloc.inference.windows import Curve, Found, Window, best_windows, detections_in, moments_in, windows_over
from unloc.model.build import EndToEnd
from unloc.model.towers import clip_ids
from unloc.plugins import added_names
from unloc.predictions.exporting import spans_of
from unloc.predictions.records import FramePrediction
from unloc.synth import toy_unloc_folder
from unloc.synth.events import FRAME_SIZES
from unloc.tasks import TASKS, task_named
from unloc.video.facts import scan
from unloc.video.locate import own_videos
from unloc.video.video_file import VideoFile, on_disk

logger = logging.getLogger(__name__)
SEARCHED_FROM_SECONDS = 600.0  # longer videos are searched first
GROUNDED_WINDOWS, GROUNDED_SHARE = 32, 0.1  # of a searched video, for each query: the larger
CLASSES_AT_ONCE = 256
MANY_TEXTS = 500  # labels in prompts from which on the expected time is said before
DEFAULT_FPS = 2.0  # of --checkpoint none


class VideoModel:
    """A model with the tower that makes its tokens, for files of any length."""

    def __init__(
        self, name: str, loaded: LoadedModel | None, encoder: Encoder, cache: Path | str | None = None
    ) -> None:
        """`loaded`: None for similarity alone; `cache`: where tokens are kept (`FileTokens`)."""
        self.name, self.loaded, self.encoder, self.cache = name, loaded, encoder, cache
        self.towers = loaded if loaded is not None and isinstance(loaded.model, EndToEnd) else None
        if self.towers is not None:
            self.loaded = replace(loaded, model=loaded.model.core)
        self.has_text_tower = self.towers is not None and self.towers.model.text_tower is not None
        self.tokens = FileTokens(encoder, cache)
        self._long_tokens: FileTokens | None = None  # at a rate, where the model's own is a number of frames

    @property
    def task(self) -> str | None:
        """What the model was trained for; None: similarity, for sentences and classes."""
        return None if self.loaded is None else self.loaded.info.recipe.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it was trained on; none of models of sentences."""
        return () if self.loaded is None else self.loaded.info.classes

    @property
    def saw_only_shapes(self) -> bool:
        """Whether only rendered videos were in the training of the model or its tower."""
        recipe = "" if self.loaded is None else self.loaded.info.recipe.name
        return self.encoder.tower.fingerprint["name"] == "toy" or recipe.startswith("synth")

    def predict(
        self,
        video: Path | str | VideoFile,
        texts: Sequence[str] | str = (),
        *,
        labels: Sequence[str] = (),
        on_progress: Callable[..., None] = lambda action, done, total: None,
    ) -> VideoPrediction:
        """The moments of sentences (`texts`), or of class names: `labels`, by default those of the training.

        `on_progress` gets what is done (encoding, finding), how much and of how much. Raises InputError for texts that
        the model does not take, VideoError with a reason for a file that cannot be read.
        """
        texts = [texts] if isinstance(texts, str) else texts
        is_query = self.require_texts(texts, labels)
        texts = tuple(dict.fromkeys(texts if is_query else labels or self.classes))
        (file,) = own_videos([video]) if isinstance(video, str | Path) else [video]
        cached, is_long = self._tokens_of(file, partial(on_progress, "encoding"))
        row, name, note, finding = cached.meta, video_id_of(file.name), "", partial(on_progress, "finding")
        # Real videos rarely have codec and size as `unloc data synth` makes them.
        is_rendered = row.get("codec") == "h264" and (row.get("width"), row.get("height")) in FRAME_SIZES
        if not is_rendered and self.saw_only_shapes:
            seen = f"{'its tower' if self.loaded is None else self.name} has seen only rendered shapes"
            note = f"NOT a rendered video, and {seen}: its answers mean nothing here"
            logger.warning("%s: %s", file, note)
        frames = VideoFrames(name, cached.frames[0], cached.times_seconds, float(row["duration_seconds"]))
        stated = {"video": str(video), "video_id": name, "duration_seconds": frames.duration_seconds, "texts": texts}
        stated |= {"note": note, "row": row, "task": self.task or ("mr" if is_query else "tal")}
        if self.loaded is None:
            return self._by_similarity(cached, texts, stated)
        if is_query:
            return self._moments(frames, texts, is_long, stated, finding)
        model = model_for_classes(self.loaded, texts)
        if self.task == "as":
            return self._labels(model, frames, stated)
        return self._detections(model, frames, is_long, stated, finding)

    def require_texts(self, texts: Sequence[str], labels: Sequence[str]) -> bool:
        """Whether sentences are asked for, or classes. Raises InputError where the model takes the others, or for an
        empty or a too long text.
        """
        is_query, where = bool(texts), f"checkpoint {self.name}"
        if texts and labels:
            raise InputError("unloc predict: -q asks for sentences, --labels for classes; give one of them")
        if self.loaded is None and not (texts or labels):
            raise InputError(f"{where}: knows no classes; give sentences with -q or classes with --labels")
        if self.task is not None:
            is_query = task_named(self.task).text_kind == "query"
            if self.task == "cls":
                raise InputError(f"{where}: names whole videos (task cls) and finds no times; use another")
            if is_query and not texts:
                raise InputError(f"{where}: takes sentences (task {self.task}): -q TEXT or --queries FILE")
            if texts and not is_query:
                advice = "leave -q out; --labels FILE names others than its own"
                raise InputError(f"{where}: takes classes (task {self.task}): {advice}")
        limit = self.encoder.tower.fingerprint["context_length"] or np.inf
        for text in (*texts, *labels):
            if not text.strip():
                raise InputError("an empty text cannot be found; give words")
            if (length := int(clip_ids([text], 4096)[1].sum())) > limit and not self.has_text_tower:
                raise InputError(f"{text[:60]!r}…: has {length} tokens, the tower takes {limit}; say it in fewer words")
        return is_query

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens (K, D) of each text as the model takes them: of its own text tower, or as a cache has them."""
        if self.has_text_tower:
            return encode_texts(self.towers, list(texts))
        dtype = self.encoder.config.dtype
        return [from_stored(tokens, dtype) for tokens in self.encoder.encode_texts(list(texts))]

    texts = encode_texts  # as a source of `ClassTexts`

    def _tokens_of(self, file: VideoFile, on_progress: OnProgress) -> tuple[CachedVideo, bool]:
        """Tokens, and whether the video is longer than what the model sees at once."""
        config, longest = self.encoder.config, np.inf
        if self.loaded is not None and self.task != "as":
            typical, longest = self.loaded.info.window_seconds
        if config.num_frames is None or longest == np.inf:
            cached = self.tokens.of(file, on_progress)
            return cached, cached.meta["duration_seconds"] > longest
        if self._long_tokens is None:
            self._long_tokens = FileTokens(self.encoder.sampled(config.num_frames / typical), self.cache)
        for tokens, is_long in ((self.tokens, False), (self._long_tokens, True)):
            if (cached := tokens.find(file)) is not None and (cached.meta["duration_seconds"] > longest) == is_long:
                return cached, is_long
        with on_disk(file) as path:
            is_long = scan(path).end_seconds > longest
        return (self._long_tokens if is_long else self.tokens).of(file, on_progress), is_long

    def _windows(self, video: VideoFrames, is_long: bool) -> list[Window]:
        if not is_long:
            return [Window()]
        seconds, _ = self.loaded.info.window_seconds
        return windows_over(float(video.times_seconds[0]), float(video.times_seconds[-1]), seconds)

    def _moments(
        self, video: VideoFrames, texts: tuple[str, ...], is_long: bool, stated: dict, on_progress: OnProgress
    ) -> VideoPrediction:
        windows, tokens = self._windows(video, is_long), self.encode_texts(texts)
        chosen, how = [windows] * len(texts), described_windows(windows)
        most = max(GROUNDED_WINDOWS, ceil(GROUNDED_SHARE * len(windows)))
        is_searched = video.duration_seconds >= SEARCHED_FROM_SECONDS and len(windows) > most
        if is_searched and not not_embeddings(self.encoder.fingerprint):
            columns, times = self._similarity(video.frames, texts).T, video.times_seconds
            chosen = [best_windows(windows, times, column, most) for column in columns]
            how += f", ranked by similarity; grounded in the best {most} of each query"
        found = moments_in(self.loaded, video, tokens, chosen, counted(on_progress, sum(map(len, chosen))))
        kept, calibration = found.kept(), self.loaded.calibration
        existence = dict.fromkeys(texts, 0.0) | {texts[index]: float(window[2]) for index, window in reversed(kept)}
        if calibration is not None:
            existence = {text: found.existence[index] for index, text in enumerate(texts)}
        saliency = {  # clips that no window saw get the lowest score
            texts[index]: np.nan_to_num(values, nan=float(np.nanmin(values)))
            for index, values in found.saliency.items()
        }
        own = {"existence": existence, "threshold": calibration and calibration.threshold, "saliency": saliency}
        own |= {"how": how, "windows": len(windows), "grounded": len(chosen[0])}
        return VideoPrediction(**stated, **own, **found_in(found, kept, texts))

    def _similarity(self, frames: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """(T, C) cosine of frames and texts by the tower of the frames."""
        tokens = self.encoder.encode_texts(list(texts))
        return similarity_to(frames, np.stack([from_stored(one[-1], self.encoder.config.dtype) for one in tokens]))

    def _detections(
        self, model: LoadedModel, video: VideoFrames, is_long: bool, stated: dict, on_progress: OnProgress
    ) -> VideoPrediction:
        windows, classes = self._windows(video, is_long), stated["texts"]
        on_done = counted(on_progress, len(windows) * len(classes))
        found = detections_in(model, video, self._class_texts(model), windows, on_done)
        own = {"how": described_windows(windows), "windows": len(windows), "grounded": len(windows)}
        return VideoPrediction(**stated, **own, **found_in(found, found.kept(), classes))

    def _class_texts(self, model: LoadedModel) -> Iterator[tuple[int, ClassTexts]]:
        """The classes in parts; all at once where the outputs for one depend on the others."""
        recipe, classes = model.info.recipe, model.info.classes
        depends = recipe.model.displacements == "shared" or recipe.model.fusion in ("none", "late")
        size, started = len(classes) if depends else CLASSES_AT_ONCE, time.perf_counter()
        for first in range(0, len(classes), size):
            yield first, ClassTexts(classes[first : first + size], self, recipe.data)
            if first == 0 and len(classes) > max(size, MANY_TEXTS):
                seconds = (time.perf_counter() - started) * len(classes) / size
                parts = -(-len(classes) // size)
                logger.warning("%d labels in %d parts of %d: about %.0f s", len(classes), parts, size, seconds)

    def _labels(self, model: LoadedModel, video: VideoFrames, stated: dict) -> VideoPrediction:
        """Labels of all frames of an AS model, and their runs as moments."""
        texts, logits, curves = stated["texts"], [], {}
        for _, part in self._class_texts(model):
            ((times, own),) = predict_frames(model, [video], part)
            logits.append(own)
        scores = np.concatenate(logits, axis=1)
        best, highest = scores.argmax(axis=1), scores.max(axis=1)
        is_background = highest <= model.info.recipe.decode.background_logit
        labels = [None if none else texts[index] for none, index in zip(is_background, best, strict=True)]
        frames = FramePrediction(video_id=video.video_id, times_seconds=times, labels=labels, scores=scores)
        spans = spans_of([frames])
        moments = [Moment(row.start, row.end, row.score, row.text) for row in spans.itertuples()]
        if moments and moments[-1].end > video.duration_seconds:
            moments[-1] = replace(moments[-1], end=video.duration_seconds)
        for index, text in enumerate(texts[:100]):
            curves[text] = Curve(times, 1.0 / (1.0 + np.exp(-scores[:, index])))
        own = {"moments": tuple(moments), "curves": curves, "frames": frames}
        return VideoPrediction(**stated, **own, how="all frames labelled")

    def _by_similarity(self, cached: CachedVideo, texts: tuple[str, ...], stated: dict) -> VideoPrediction:
        """The baseline of `unloc eval --baseline`."""
        if others := not_embeddings(self.encoder.fingerprint):
            raise InputError(f"--tower: its tokens are not CLIP's embeddings ({others}), which are compared here")
        similarity = self._similarity(cached.frames[0], texts)
        moments, curves = [], {}
        for text, column in zip(texts, similarity.T, strict=True):
            moments += [Moment(*map(float, window), text) for window in segments_above(column, cached)]
            curves[text] = Curve(cached.times_seconds, column)
        is_query = stated["task"] == "mr"
        if not is_query:
            moments.sort(key=lambda one: -one.score)
        best = {text: float(curves[text].relevance.max()) for text in texts} if is_query else {}
        own = {"moments": tuple(moments), "curves": curves, "existence": best}
        return VideoPrediction(**stated, **own, how="by similarity alone, without training")


def counted(on_progress: OnProgress, total: int) -> Callable[[int], None]:
    """Called with how many more are done."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    return add


def described_windows(windows: Sequence[Window]) -> str:
    """How a video was seen, for a user."""
    if len(windows) == 1:
        return "seen whole"
    return f"{len(windows)} windows of {windows[0].end - windows[0].start:.1f} s"


def found_in(found: Found, kept: Sequence[tuple[int, np.ndarray]], texts: Sequence[str]) -> dict:
    """Moments and curves of a `VideoPrediction`."""
    curves = {text: curve for index, text in enumerate(texts) if (curve := found.curve(index)) is not None}
    return {"moments": tuple(Moment(*map(float, window), texts[index]) for index, window in kept), "curves": curves}


def load(
    checkpoint: Path | str,
    *,
    task: str | None = None,
    kind: str = "query",
    tower: str | None = None,
    pretrained: str | None = None,
    cache: Path | str | None = None,
    device: str = "auto",
) -> VideoModel:
    """The model of a run, checkpoint or model folder, or of a name on the Hugging Face Hub (`owner/name`); `toy`:
    shipped, for rendered videos; `none`: similarity of a `tower`.

    `task` chooses among several tasks of a run, or of toy (mr, tal, as); without it the `kind` of texts does: query or
    class. `pretrained`: weights file or tag of the tower, or the run that it is of. `cache` keeps tokens of videos.
    Raises MissingError, InputError or TowerError where model or tower cannot be loaded, FingerprintError for another
    tower than made the tokens of the training.
    """
    device_ = resolve_device(device)
    if str(checkpoint) == "none":
        is_clip = tower not in (None, "toy", *added_names("towers")) and not local_run(tower).is_dir()
        weights = pretrained or ("openai" if is_clip else None)
        config = EncodeConfig(tower=tower or "toy", pretrained=weights, fps=DEFAULT_FPS)
        return VideoModel("none", None, Encoder(config, device_), cache)
    if tower is not None:
        raise InputError(f"--tower {tower}: belongs to --checkpoint none; {checkpoint} knows its own tower")
    wanted = [task] if task else [one.name for one in TASKS.values() if one.text_kind == kind]
    run = toy_unloc_folder(wanted[0]) if str(checkpoint) == "toy" else local_run(checkpoint)
    loaded = load_model(run, device_, wanted)
    info = loaded.info
    if task is not None and info.recipe.task != task:
        raise InputError(f"--task {task}: checkpoint {checkpoint} was trained for {info.recipe.task}")
    if "tower.name" not in info.fingerprint:
        raise InputError(f"{checkpoint}: was trained on imported features; no tower here makes these from a video")
    weights = pretrained or loaded.tower_weights
    config = EncodeConfig.from_fingerprint(info.fingerprint, pretrained=weights)
    if "image" in info.live_towers:
        config = replace(config, tower=str(run), dtype=EncodeConfig.dtype)  # as `unloc extract --tower RUN` rounds them
    elif (tower_run := run_of_tower(info, weights, checkpoint)) is not None:
        config = replace(config, tower=str(tower_run), pretrained=None)
    encoder = Encoder(config, device_)
    if "image" not in info.live_towers:
        require_same_cache(info.fingerprint, encoder.fingerprint, checkpoint)
    return VideoModel(str(checkpoint), loaded, encoder, cache)
