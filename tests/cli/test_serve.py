"""`unloc serve`: the page and its JSON API, which answer as `unloc predict` does and ask nothing of other machines.

Gradio is an extra, without which these tests are skipped: pip install 'unloc[serve]'.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tests.conftest import render_video
from tests.report.chromium import chromium_page

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
HOSTILE = "</script><img src=x onerror=parent.broken=broken=1> {{value}} ${1+1} `"


def missing(name):
    raise PackageNotFoundError(name)


@pytest.mark.parametrize("found", [missing, lambda name: "6.16.0"])
def test_without_gradio_one_line_says_how_to_get_it(found, fails, monkeypatch):
    monkeypatch.setattr("unloc.cli.serve.version", found)
    fails("serve", "--checkpoint", "toy", saying="pip install 'unloc[serve]'")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    render_video(folder / "short.mp4", num_frames=40)
    render_video(folder / "long.mp4", num_frames=310)
    (folder / "broken.mp4").write_bytes(b"\0" * 1000)
    (folder / "large.mp4").write_bytes(b"\0" * (1 << 20) + b"more")
    return folder


@pytest.fixture(scope="module")
def encoded():
    """The files that were decoded."""
    return []


@pytest.fixture(scope="module")
def answering():
    """Clear it and the question that is taken waits, which `begun` says."""
    event = threading.Event()
    event.begun = threading.Event()
    event.set()
    return event


@pytest.fixture(scope="module")
def address(tmp_path_factory, encoded, answering):
    """A server with the toy model and small limits."""
    pytest.importorskip("gradio", "6.17", reason="gradio is an extra: pip install 'unloc[serve]'")
    from unloc.inference.encode import Encoder
    from unloc.inference.video_model import VideoModel, load
    from unloc.report.app import served

    encode, answer, busy = Encoder.encode_video, VideoModel.predict, threading.Lock()

    def predict(*args, **kw):
        assert busy.acquire(blocking=False), "two questions at a time"
        try:
            answering.begun.set()
            assert answering.wait(60)
            return answer(*args, **kw)
        finally:
            busy.release()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):  # which it sets
            patch.setenv(name, "")
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        patch.setenv("UNLOC_TOKENS", str(tmp_path_factory.mktemp("tokens")))
        patch.setattr(Encoder, "encode_video", lambda *args, **kw: encoded.append(args[1]) or encode(*args, **kw))
        patch.setattr(VideoModel, "predict", predict)
        with served(load("toy"), port=None, max_mb=1, max_minutes=0.5) as found:
            yield found


def uploaded(address, file):
    import httpx

    with file.open("rb") as content:
        return httpx.post(f"{address}gradio_api/upload", files={"files": content})


def called(address, function, *data):
    import httpx

    return httpx.post(f"{address}gradio_api/call/{function}", json={"data": data}).json()["event_id"]


def joined(address, path, words, top, low, least=0):
    video = path and {"path": path, "meta": {"_type": "gradio.FileData"}}
    return called(address, "predict", video, words, top, low, least)


def result(address, event, function="predict"):
    """(`complete` or `error`, what comes with it)."""
    import httpx

    lines = httpx.get(f"{address}gradio_api/call/{function}/{event}", timeout=60).text.splitlines()
    start = max(index for index, line in enumerate(lines) if line.startswith("event: "))
    return lines[start].removeprefix("event: "), json.loads(lines[start + 1].removeprefix("data: "))


def test_the_api_answers_as_predict_and_decodes_a_video_once(address, videos, encoded, answering, unloc):
    import httpx

    (path,) = uploaded(address, videos / "short.mp4").json()
    kind, (first,) = result(address, joined(address, path, "a red circle\n\n a blue star ", 2, True))
    assert kind == "complete" and first["video"] == "short.mp4" and len(encoded) == 1
    queries = ("-q", "a red circle", "-q", "a blue star")
    options = ("--checkpoint", "toy", "--top", 2, "--min-score", 0, "--json")
    code, out, errors = unloc("predict", videos / "short.mp4", *queries, *options)
    assert code == 0 and json.loads(out)[0]["answers"] == first["answers"], errors

    (again,) = uploaded(address, videos / "short.mp4").json()
    texts = ["a green square", HOSTILE, "a blue star", "a star"]
    answering.clear()
    events = {text: joined(address, again, text, 5, False) for text in texts}
    for _ in range(100):  # the first is taken, the others wait
        if httpx.get(f"{address}gradio_api/queue/status").json()["queue_size"] == 3:
            break
    answering.set()
    for text, event in events.items():
        kind, (answer,) = result(address, event)
        assert kind == "complete" and [one["text"] for one in answer["answers"]] == [text]
    assert len(encoded) == 1


def test_moments_below_the_least_score_are_left_out(address, videos):
    (path,) = uploaded(address, videos / "short.mp4").json()

    def scores(low, *least):
        kind, (answer,) = result(address, joined(address, path, "a red circle", 5, low, *least))
        assert kind == "complete"
        return [one["score"] for one in answer["answers"][0]["moments"]]

    every = scores(True)
    assert len(every) == 5 and scores(True, every[2]) == every[:3] and scores(True, 2) == []
    assert set(scores(False, every[2])) <= set(every[:3])  # what is not there stays away at any score


def test_a_question_is_stopped_and_the_next_one_is_answered(address, videos, answering):
    (path,) = uploaded(address, videos / "short.mp4").json()
    answering.clear()
    answering.begun.clear()
    event = joined(address, path, "a red circle", 5, True)
    assert answering.begun.wait(30)
    following = joined(address, path, "a blue star", 5, True)
    assert result(address, called(address, "stop", event), "stop")[0] == "complete"
    answering.set()
    kind, found = result(address, event)
    assert kind == "error" and found["error"] == "Stopped."
    assert result(address, following)[0] == "complete"


def test_errors_are_words_without_paths_of_the_server(address, videos):
    def error(file, words):
        path = file and uploaded(address, videos / file).json()[0]
        kind, found = result(address, joined(address, path, words, 5, False))
        assert kind == "error" and "Traceback" not in found["error"]
        assert path is None or str(Path(path).parent) not in found["error"]
        return found["error"]

    assert "no video yet" in error(None, "a red circle")
    assert "no words yet" in error("short.mp4", " \n")
    assert "101 lines" in error("short.mp4", "a red circle\n" * 101)
    assert "fewer words" in error("short.mp4", "word " * 100)
    assert "long.mp4 is too long: 00:31.0" in error("long.mp4", "a red circle")
    assert error("broken.mp4", "a red circle").startswith("broken.mp4: ")
    refused = uploaded(address, videos / "large.mp4")
    assert refused.status_code == 413 and "exceeded maximum allowed size" in refused.text
    kind, found = result(address, joined(address, str(videos / "short.mp4"), "a red circle", 5, False))
    assert kind == "error" and "not uploaded" in found["error"]
    kind, found = result(address, joined(address, "http://127.0.0.1:9/film.mp4", "a red circle", 5, False))
    assert kind == "error" and "upload the file" in found["error"]


def test_the_clients_of_the_page_of_the_documentation_are_answered(address, videos):
    python, curl = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    here, film = address.rstrip("/"), str(videos / "short.mp4")
    names = {}
    exec(python.replace("http://127.0.0.1:7860", here).replace("film.mp4", film), names)
    assert names["found"]["answers"][0]["text"] == "a red ball falls"

    def run(command, **changes):
        for before, after in {**changes, "http://127.0.0.1:7860": here, "film.mp4": film}.items():
            command = command.replace(before, after)
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout

    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    upload, ask, wait = re.findall(r"^curl .*$", curl.replace("\\\n", ""), re.MULTILINE)
    (path,) = json.loads(run(upload))
    event = json.loads(run(ask, **{"/tmp/unloc-serve-…/film.mp4": path}))["event_id"]
    assert "event: complete" in (found := run(wait, **{"5f2c…": event})) and "a red ball falls" in found


def test_a_port_in_use_is_an_error_of_one_line(address, fails, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    fails("serve", "--checkpoint", "toy", "--port", address.rstrip("/").rpartition(":")[2], saying="in use")


ALONE = """
import os, sys
HERE = ("127.0.0.1", "localhost", None)
def watch(event, args):
    host = args[1][0] if event == "socket.connect" and isinstance(args[1], tuple) else None
    if (args[0] if event == "socket.getaddrinfo" else host) not in HERE:
        print(event, args, flush=True)
        os._exit(9)
sys.addaudithook(watch)
from unloc.cli import main
main()
"""


@pytest.mark.slow
def test_the_command_asks_no_other_machine_until_it_is_stopped_and_leaves_no_files(videos, tmp_path):
    pytest.importorskip("gradio", "6.17", reason="gradio is an extra: pip install 'unloc[serve]'")
    command = [sys.executable, "-c", ALONE, "serve", "--checkpoint", "toy"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "UNLOC_TOKENS": str(tmp_path / "tokens")}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1)
    limit = threading.Timer(120, server.kill)
    limit.start()
    line = server.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
    (path,) = uploaded(address, videos / "short.mp4").json()
    assert result(address, joined(address, path, "a red circle", 5, True))[0] == "complete"
    assert len(list(tmp_path.glob("unloc-serve-*"))) == 1
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0 and not list(tmp_path.glob("unloc-serve-*"))
    limit.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_uploads_asks_stops_sees_jumps_downloads_and_stays_here(
    width, address, videos, encoded, answering, tmp_path
):
    encoded.clear()
    inside = "document.querySelector('#page iframe')?.contentDocument"
    with chromium_page(address, tmp_path / "profile", width) as page:
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))

        def find(text):
            page.js("document.querySelector('#words textarea').select()")
            page.call("Input.insertText", text=text)
            page.js("document.querySelector('#find').click()")
            if not answering.is_set():
                return
            page.until(f"{inside}?.querySelector('.row .name .text')?.textContent === {json.dumps(text)}", 60)
            page.until(f"{inside}.querySelector('.seg.found') !== null")

        for part in ("#video input[type=file]", "#words textarea", "#low input", "#find"):
            page.until(f"document.querySelector('{part}') !== null", 60)
        root = page.call("DOM.getDocument")["root"]["nodeId"]
        node = page.call("DOM.querySelector", nodeId=root, selector="#video input[type=file]")["nodeId"]
        page.call("DOM.setFileInputFiles", nodeId=node, files=[str(videos / "short.mp4")])
        page.until("document.querySelector('#video').innerText.includes('short.mp4')", 60)
        page.js("document.querySelector('#low input').click()")
        find("a red circle")
        decoded = len(encoded)
        answering.clear()
        find("a green square")
        page.until("document.querySelector('#page .progress-text, #page .eta-bar, #page .wrap.default') !== null", 60)
        page.js("document.querySelector('#stop').click()")
        page.until("document.querySelector('#page .progress-text, #page .eta-bar, #page .wrap.default') === null", 60)
        answering.set()
        find(HOSTILE)
        assert len(encoded) == decoded <= 1
        assert page.js("window.broken") is None and page.js(f"{inside}.defaultView.broken") is None

        page.until(f"{inside}.querySelector('video').readyState >= 1")
        page.js(f"{inside}.querySelector('.seg.found').click()")
        assert page.js(f"{inside}.querySelector('video').currentTime") > 0
        page.until(f"document.querySelector('#page iframe').clientHeight > {inside}.body.offsetHeight - 3")
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        assert page.js(f"{inside}.documentElement.scrollWidth <= {inside}.defaultView.innerWidth")

        for name in ("html", "csv", "json"):
            page.js(f"document.querySelector('#{name}').click()")
            wanted = tmp_path / f"short.{name}"
            for _ in range(200):
                if wanted.exists() and wanted.stat().st_size:
                    break
                page.js("new Promise(done => setTimeout(done, 50))")
                threading.Event().wait(0.05)
        (answer,) = json.loads((tmp_path / "short.json").read_text())["answers"]
        assert answer["text"] == HOSTILE and len(answer["moments"]) == 5
        with (tmp_path / "short.csv").open() as file:
            assert HOSTILE in next(csv.DictReader(file)).values()
        shown = (tmp_path / "short.html").read_text()
        assert "data:video/mp4;base64," in shown and "/gradio_api/" not in shown

        here = (address, "data:", "blob:" + address)
        assert not [url for url in page.requests if not url.startswith((*here, "about:"))]
        assert not [one for one in page.complaints if "upload_progress" not in one]
