"""The page of `unloc serve`, made with Gradio: a video and words go in, the timeline of `unloc report` comes out.

They ask nothing of any other machine: no analytics, the system's fonts, and a policy for the browser.
"""

import json
import math
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from unloc.errors import InputError, UnlocError
from unloc.inference.answers import as_json, clock, write_predictions
from unloc.inference.video_model import VideoModel, VideoPrediction
from unloc.report.content import content_of, material_of
from unloc.report.media import duration_of, video_source
from unloc.report.page import render
from unloc.tasks import task_named
from unloc.video.locate import EXTENSIONS

HOST = "127.0.0.1"
MOST_TEXTS, MOST_WAITING, MOST_MOMENTS = 100, 16, 50
KEPT_SECONDS = 24 * 3600  # of uploaded videos and answers; all are deleted when the server stops
STYLE = ".main.fillable.app { padding: 12px !important } .html-container { padding: 0 !important }"
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
_FIT = "const d = this.contentDocument; new ResizeObserver(() => this.style.height = d.body.offsetHeight + 'px')"
_FRAME = f'<iframe title="Timeline" style="width: 100%; height: 60vh; border: 0" onload="{_FIT}.observe(d.body)"'
_PROGRESS = gr.Progress()


@dataclass(frozen=True, kw_only=True)
class Service:
    """Answers about uploaded videos, one at a time; `folder` has the files to download."""

    model: VideoModel
    folder: Path
    max_mb: int
    max_minutes: float
    turn: threading.Lock = field(default_factory=threading.Lock)
    asked: set[tuple[str, threading.Event]] = field(default_factory=set)  # who asks; set the event and it is stopped

    @property
    def takes_sentences(self) -> bool:
        """Else class names, by default those of the training."""
        return self.model.task is None or task_named(self.model.task).text_kind == "query"

    def answer(
        self,
        video: str | None,
        words: str,
        top: int,
        low: bool,
        min_score: float | None,
        on_progress: Callable[..., None],
    ) -> VideoPrediction:
        """The best moments of each line of `words` that have at least `min_score` (0: any); `low`: also of what the
        model thinks is not there.

        Raises InputError, and errors as `VideoModel.predict`.
        """
        texts = [line.strip() for line in words.splitlines() if line.strip()]
        if video is None:
            raise InputError("There is no video yet: drop one first.")
        if self.takes_sentences and not texts:
            raise InputError("There are no words yet: type what to find, one sentence a line.")
        if len(texts) > MOST_TEXTS:
            raise InputError(f"{len(texts)} lines of words are too many: {MOST_TEXTS} are answered at once.")
        path, seconds = Path(video), duration_of(Path(video))
        if seconds is not None and seconds > 60 * self.max_minutes:
            limit = f"this server takes {self.max_minutes:g} minutes (unloc serve --max-minutes)"
            raise InputError(f"{path.name} is too long: {clock(seconds)}; {limit}.")
        asked = {"texts": texts} if self.takes_sentences else {"labels": texts}
        found = self.model.predict(path, **asked, on_progress=on_progress).best(top, -math.inf if low else None)
        return replace(found.best(top, min_score) if min_score else found, video=path.name)

    @contextmanager
    def stoppable(self, session: str, on_progress: Callable[..., None]) -> Iterator[Callable[..., None]]:
        """`on_progress` of a question, which ends there once it is stopped; until then no other question runs."""
        own = (session, threading.Event())
        self.asked.add(own)

        def checked(*progress: object) -> None:
            if own[1].is_set():
                raise UnlocError("Stopped.")
            on_progress(*progress)

        try:
            with self.turn:  # also where Gradio counts a question as ended that is about to stop
                yield checked
        finally:
            self.asked.remove(own)

    def stop(self, session: str) -> None:
        """Stop the questions of a session."""
        for owner, stopped in list(self.asked):
            if owner == session:
                stopped.set()

    def files(self, found: VideoPrediction, path: Path) -> tuple[str, list[str | None]]:
        """The page to show here, and files to keep: html, csv (None where nothing is found), json."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        html, csv, answers = (folder / f"{found.video_id}{ending}" for ending in (".html", ".csv", ".json"))
        content = content_of(material_of([found]), html, {found.video_id: path}, top=MOST_MOMENTS)
        if not len(found):
            content["notes"].append("Nothing was found.")
        for one in content["videos"]:  # small videos are in the file, others are looked for next to it
            one["source"] = video_source(path, path.with_suffix(".html"), embed=True)
        html.write_text(render(content), encoding="utf-8")
        if len(found):
            write_predictions([found], [path], csv, "csv")
        answers.write_text(json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for one in content["videos"]:
            one["source"] = f"/gradio_api/file={quote(str(path))}"
        return render(content), [str(html), str(csv) if len(found) else None, str(answers)]


def app_of(service: Service) -> gr.Blocks:
    """The page, and the function `predict` of its JSON API."""

    def answered(
        request: gr.Request, progress: gr.Progress, video: str | None, words: str, top: int, *more: object
    ) -> VideoPrediction:
        def on_progress(action: str, done: int, total: int) -> None:
            progress((done, total), desc=action.capitalize(), unit={"encoding": "frames"}.get(action, "windows"))

        with errors_shown(video), service.stoppable(request.session_hash, on_progress) as reported:
            return service.answer(video, words or "", int(top or 5), *more, reported)

    def predict(
        request: gr.Request,
        video: str | None,
        words: str,
        top: int = 5,
        low: bool = False,
        min_score: float = 0.0,
        progress: gr.Progress = _PROGRESS,
    ) -> dict:
        """Moments of each line of words in an uploaded video, as `unloc predict --json` prints them."""
        return as_json(answered(request, progress, video, words, top, low, min_score))

    def show(
        request: gr.Request,
        video: str | None,
        words: str,
        top: int,
        low: bool,
        min_score: float | None,
        progress: gr.Progress = _PROGRESS,
    ) -> list:
        try:
            found = answered(request, progress, video, words, top, low, min_score)
            with errors_shown(video):
                page, files = service.files(found, Path(video))
        except gr.Error as error:
            error.message = escape(error.message)  # which is shown as markup
            raise
        buttons = [gr.DownloadButton(value=file, interactive=file is not None) for file in files]
        return [f'{_FRAME} srcdoc="{escape(page)}"></iframe>', *buttons]

    def stop(request: gr.Request, question: str = "") -> None:
        """Stop a running question by its event_id, or those of this client."""
        service.stop(question or request.session_hash)

    what = "one sentence a line" if service.takes_sentences else "one class a line; none: those of the training"
    about = f"Model: {service.model.name}. Videos of up to {service.max_mb} MB and {service.max_minutes:g} minutes; "
    about += "they stay on this machine, and are deleted when the server stops."
    with gr.Blocks(title="unloc", analytics_enabled=False, delete_cache=(3600, KEPT_SECONDS)) as app:
        gr.HTML(f"<h1>When does it happen?</h1><p>{escape(about)}</p>")
        with gr.Row():
            video = gr.File(label="Video", file_types=list(EXTENSIONS), height=220, elem_id="video")
            with gr.Column():
                words = gr.Textbox(label=f"What to find, {what}", lines=3, max_lines=8, elem_id="words")
                with gr.Row():
                    top = gr.Number(5, label="Moments of each", precision=0, minimum=1, maximum=MOST_MOMENTS)
                    least = gr.Number(0, label="Least score (0: any)", elem_id="least")
                low = gr.Checkbox(label="Also what is probably not there", elem_id="low")
        with gr.Row():
            find = gr.Button("Find", variant="primary", scale=4, min_width=90, elem_id="find")
            end, files = gr.Button("Stop", min_width=90, elem_id="stop"), []
        with gr.Row():
            for name in ("html", "csv", "json"):
                button = {"size": "sm", "min_width": 90, "interactive": False, "elem_id": name}
                files.append(gr.DownloadButton(f"Download {name}", **button))
        page = gr.HTML("<p>The timeline will be here.</p>", elem_id="page", min_height=120)
        video.async_move_resource_to_block_cache = _of_this_machine(video.async_move_resource_to_block_cache)
        asked, shared = [video, words, top, low, least], {"concurrency_id": "model", "concurrency_limit": 1}
        ui = {"show_progress_on": page, "api_visibility": "private"} | shared
        hidden = gr.Button(visible=False)
        hidden.click(predict, asked, gr.JSON(visible=False), api_name="predict", **shared)
        hidden.click(stop, gr.Textbox(visible=False), api_name="stop", queue=False)
        shown = gr.on([find.click, words.submit], show, asked, [page, *files], **ui)
        end.click(stop, cancels=shown, queue=False, api_visibility="private")
        app.unload(stop)  # the page was closed
    return app.queue(max_size=MOST_WAITING)


def _of_this_machine(move: Callable[[str], Awaitable[str]]) -> Callable[[str], Awaitable[str]]:
    """Gradio's function that takes a file of a question, which would fetch a URL."""

    async def moved(path: str) -> str:
        if "://" in path:
            raise gr.Error(f"{path}: upload the file; nothing is fetched from elsewhere", print_exception=False)
        return await move(path)

    return moved


@contextmanager
def errors_shown(video: str | None) -> Iterator[None]:
    """Errors that a user can do something about become Gradio's, which it shows; they name the video, not its path."""
    try:
        yield
    except (UnlocError, OSError) as error:
        text = str(error).replace(f"{Path(video or '').parent}/", "")
        raise gr.Error(" ".join(text.split()), duration=None, print_exception=False) from None


@contextmanager
def served(model: VideoModel, *, port: int | None, max_mb: int, max_minutes: float) -> Iterator[str]:
    """The address of the page while it is served, on this machine only.

    Raises InputError where the port is in use, or the model finds no moments.
    """
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"{os.environ.get('NO_PROXY', '')},{HOST}"  # asked at the start
    with tempfile.TemporaryDirectory(prefix="unloc-serve-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        service = Service(model=model, folder=Path(folder), max_mb=max_mb, max_minutes=max_minutes)
        model.require_texts(["words"] if service.takes_sentences else [], [])  # raises for a model that finds no times
        app = app_of(service)
        options = {"server_name": HOST, "server_port": port, "share": False, "prevent_thread_lock": True, "quiet": True}
        options |= dict.fromkeys(("ssr_mode", "mcp_server", "pwa", "run_history", "enable_monitoring"), False)
        options |= {"show_error": True, "footer_links": ["api"], "max_file_size": max_mb << 20, "css": STYLE}
        options["head"] = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        options["theme"] = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        try:
            _, address, _ = app.launch(**options)
        except OSError:
            raise InputError(f"--port {port or ''}: is in use; give another, or none for the first free one") from None
        try:
            yield address
        finally:
            app.close(verbose=False)
