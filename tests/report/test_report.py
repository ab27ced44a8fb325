"""`unloc report`: one page without any request, whose texts stay texts, of a run, an evaluation or predictions."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.scored import AS, HD, MR, TAL, answer, write_mr
from tests.conftest import render_video
from tests.report.chromium import chromium_page
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, save_manifest
from unloc.report.page import SHELL, render

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>&amp;&lt;",
    "{{data}} {{title}} \\u003c \\1 \\g<0>",
    "\u202eright to left\u202c מתי נפתחת הדלת؟",
    "👩‍👩‍👧‍👦 a\u2028b\u2029c\x00\x07",
    "w" * 400,
    "<!--<script>",
]


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text of each script and style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self._inside = [], {"script": [], "style": [], "title": []}, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in self.texts:
            self.texts[tag].append("")
            self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.texts[self._inside][-1] += data


def data_of(page):
    return json.loads(Tags(page).texts["script"][0])


@pytest.fixture
def report(unloc):
    """Runs `unloc report`, which must succeed, and reads the page: (its text, its data)."""

    def run(*words):
        code, out, errors = unloc("report", *words)
        assert code == 0, errors
        page = (re.search(r"wrote (.*?): ", out)[1]).strip()
        text = Path(page).read_text(encoding="utf-8")
        return text, data_of(text)

    return run


def empty(**content):
    parts = dict.fromkeys(("metrics", "errors", "examples")) | {
        key: [] for key in ("facts", "notes", "curves", "videos")
    }
    return parts | {"title": "t", "units": ["query", "queries"], "scores": [0, 1], "footer": ""} | content


# -- The page


def test_the_shell_is_small_and_asks_for_nothing():
    shell = SHELL.read_text()
    assert len(shell.encode()) < 60_000
    assert not re.search(r"https?:|//\w+\.|@import|url\(", shell)
    asking = "fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\\(|importScripts|Worker"
    markup = "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(|Function\\(|DOMParser"
    assert not re.search(f"{asking}|{markup}", shell)


def test_the_policy_allows_this_script_and_style_by_hash_and_no_origin():
    tags = Tags(render(empty()))
    policy = next(a["content"] for tag, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = {words[0]: words[1:] for words in (rule.split() for rule in policy.split(";"))}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    for kind, text in (("script", tags.texts["script"][1]), ("style", tags.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == [f"'sha256-{digest}'"]
    assert rules["img-src"] == ["data:"] and set(rules["media-src"]) <= {"'self'", "file:", "data:"}
    links = [value for _, a in tags.tags for key, value in a.items() if key in ("src", "href", "action", "srcset")]
    assert links == ["data:,"] and not any(key.startswith("on") for _, a in tags.tags for key in a)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_a_text(text):
    page = render(empty(title=text, notes=[text]))
    tags = Tags(page)
    assert [tag for tag, _ in tags.tags] == [tag for tag, _ in Tags(render(empty())).tags]
    assert data_of(page)["notes"] == [text] and data_of(page)["title"] == text
    assert "<" not in tags.texts["script"][0] and len(tags.texts["script"]) == 2


def test_numbers_that_are_not_finite_are_null():
    assert data_of(render(empty(scores=[float("nan"), float("inf")])))["scores"] == [None, None]


# -- Of predictions


def test_predictions_alone_have_a_timeline_each(scored, report):
    _, data = report("mr.json", "-o", "page.html")
    first, _second = data["videos"]
    assert first["id"] == "v1" and first["source"] is None and data["metrics"] is None
    (row,) = first["rows"]
    assert row["text"] == "query 1" and row["found"] == [[0, 10, 0.9], [10, 20, 0.1]] and row["truth"] == []
    (saliency,) = row["curves"]
    assert saliency["name"] == "saliency" and saliency["times"][:2] == [0, 2] and len(saliency["values"]) == 10
    assert first["duration"] == 20.0 and "No annotations" in data["notes"][0]


def test_hostile_names_of_everything_reach_the_page_as_they_are(tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [text.replace("/", "").replace("\0", "")[:80] for text in HOSTILE]
    rows = [VideoRow(name, "test", 2.0, f"{name}.mp4") for name in names]
    rows += [QueryRow(name, "test", str(n), HOSTILE[n], [[0.2, 1.0]]) for n, name in enumerate(names)]
    save_manifest(build_manifest(name=HOSTILE[0], tasks=("mr",), rows=rows), tmp_path / "m.jsonl")
    found = [answer(n, vid=name, query=HOSTILE[n]) for n, name in enumerate(names)]
    write_mr(tmp_path / "p.jsonl", [one | {"pred_relevant_windows": [[0.1, 1.0, 0.5]]} for one in found])
    (tmp_path / "videos").mkdir()
    small = render_video(tmp_path / "small.mp4").read_bytes()
    for name in names:
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(small)
    page, data = report("p.jsonl", "-m", "m.jsonl", "--split", "test", "--videos", "videos")
    assert [video["rows"][0]["text"] for video in data["videos"]] == HOSTILE
    assert [video["id"] for video in data["videos"]] == names
    assert all(re.fullmatch(r"videos/[\w%.~-]+", video["source"]) for video in data["videos"])
    assert {card["text"] for card in data["examples"]["best"] + data["examples"]["worst"]} <= set(HOSTILE)
    assert [tag for tag, _ in Tags(page).tags] == [tag for tag, _ in Tags(render(empty())).tags]


def test_every_task_has_rows_with_truth_and_predictions(scored, report):
    _, tal = report("tal.json", "-m", "tal.jsonl", "--split", "test", "-o", "tal.html")
    assert [(v["id"], [row["text"] for row in v["rows"]]) for v in tal["videos"]] == [
        ("v1", ["Run"]),
        ("v2", ["Jump"]),
        ("v3", ["Run"]),
    ]
    (row,) = tal["videos"][0]["rows"]
    assert row["truth"] == [[10, 20]] and row["found"] == [[10, 20, 0.9]] and row["iou"] == 1.0
    _, frames = report("as.jsonl", "-m", "tal.jsonl", "--split", "test", "--task", "as", "-o", "as.html")
    (row,) = frames["videos"][2]["rows"]
    assert row["found"] == [[30, 90, None]] and row["truth"] == [[30, 90]] and frames["units"][1] == "classes"
    _, rated = report("mr.json", "-m", "mr.jsonl", "--split", "val", "--task", "hd", "-o", "hd.html")
    assert [row["name"] for row in rated["metrics"]["rows"]].count("HL-min-VeryGood-Hit1") == 1
    predicted, annotated = rated["videos"][0]["rows"][0]["curves"]
    assert predicted["name"] == "saliency" and rated["units"][1] == "queries"
    assert annotated["name"] == "annotated saliency, mean of 3 raters" and annotated["range"] == [0, 4]
    assert annotated["times"] == predicted["times"] and annotated["values"] == [4] * 5 + [0] * 5


def test_what_is_missed_is_on_the_page_and_only_the_best_predictions_are(scored, report):
    content = {"results": {"v1": [{"label": "Run", "score": n / 10, "segment": [n, n + 5]} for n in range(9)]}}
    (scored / "few.json").write_text(json.dumps(content))
    _, data = report("few.json", "-m", "tal.jsonl", "--split", "test", "--top", "3")
    run, (missed,) = data["videos"][0]["rows"][0], data["videos"][1]["rows"]
    assert [score for _, _, score in run["found"]] == [0.8, 0.7, 0.6] and run["more"] == 6
    assert missed["text"] == "Jump" and missed["found"] == [] and missed["iou"] == 0
    assert any("missing video" in note for note in data["notes"])


def test_many_videos_are_limited_and_the_page_says_so(scored, report):
    _, data = report("tal.json", "-m", "tal.jsonl", "--split", "test", "--limit", "2")
    assert len(data["videos"]) == 2 and "2 of 3 videos" in data["notes"][-1]


# -- Of a run


def test_an_evaluation_shows_metrics_floors_intervals_and_errors(scored, unloc, report):
    for name, line in {"tal": TAL, "as": AS, "mr": MR, "hd": HD, "null": f"{MR} --rejection"}.items():
        file = {"tal": "tal.json", "as": "as.jsonl"}.get(name, "mr.json")
        assert unloc(*line.split(), "--predictions", file, "--out", name)[0] == 0
        page, data = report(name)
        metrics = json.loads((scored / name / "metrics.json").read_text())
        shown = {row["name"]: row for row in data["metrics"]["rows"]}
        assert shown and all(row["ours"] == metrics["metrics"][key] for key, row in shown.items())
        assert data["metrics"]["floors"] == list(metrics["floors"])
        assert any(row["low"] is not None and row["low"] <= row["ours"] <= row["high"] for row in shown.values())
        assert (data["errors"] is None) == (name == "null")
        if data["errors"]:
            kinds = dict((kind, count) for kind, count, _ in data["errors"]["kinds"])
            assert kinds["true"] > 0 and next(title for title, _ in data["errors"]["recall"]) == "Recall by length"
        assert page == (scored / name / "report.html").read_text()


def test_a_run_shows_its_training_and_the_frames_of_its_examples(token_world, tmp_path, unloc, report, undrawn):
    manifest, cache = token_world
    small = "model.width=32 model.num_heads=2 model.mlp_width=32 model.num_layers=1 train.batch_size=4 train.epochs=2"
    of = ["--manifest", manifest, "--cache", cache]
    code, _, errors = unloc("fit", "synth_mr", *small.split(), *of, "--work-dir", tmp_path / "run")
    assert code == 0, errors
    _, data = report(tmp_path / "run")
    assert [panel["title"] for panel in data["curves"]] == ["training loss", "learning rate", "validation"]
    assert "not evaluated" in data["notes"][0] and data["videos"] == []
    assert unloc("eval", tmp_path / "run", *of, "--split", "val")[0] == 0
    videos = tmp_path / "videos"
    videos.mkdir()
    for video_id in {json.loads(line).get("video_id") for line in manifest.read_text().splitlines()} - {None}:
        render_video(videos / f"{video_id}.mp4", num_frames=120)
    _, data = report(tmp_path / "run", "--videos", videos)
    assert (tmp_path / "run/eval/val/report.html").is_file() and data["title"] == "run"
    assert data["curves"] and data["metrics"] and data["errors"]
    card = data["examples"]["best"][0]
    image = Image.open(BytesIO(base64.b64decode(card["found_frames"][0][1].partition(",")[2])))
    assert image.format == "JPEG" and image.size == (180, 120)  # of 96 × 64
    best, worst = ([card["iou"] for card in data["examples"][key]] for key in ("best", "worst"))
    assert min(best) >= max(worst) and data["videos"][card["index"]]["id"] == card["video"]
    assert data["videos"][0]["source"].startswith("../../../videos/")


# -- Videos and files


def test_videos_are_linked_relative_to_the_page_or_embedded(scored, report):
    (scored / "videos").mkdir()
    file = render_video(scored / "videos" / "v1.mp4", num_frames=40)
    _, data = report("mr.json", "--videos", "videos", "-o", "pages/deep/page.html")
    assert data["videos"][0]["source"] == "../../videos/v1.mp4" and data["videos"][1]["source"] is None
    assert "have no file" in data["notes"][-1]
    assert data["videos"][0]["duration"] == pytest.approx(4.0, abs=0.2)  # measured
    _, data = report("mr.json", "--videos", "videos", "--embed")
    kind, _, content = data["videos"][0]["source"].partition(",")
    assert kind == "data:video/mp4;base64" and base64.b64decode(content) == file.read_bytes()


def test_nothing_is_replaced_that_eval_or_report_did_not_write(scored, unloc, report):
    report("tal.json")
    report("tal.json")
    for out, word in (("tal.json", "is an input"), ("as.jsonl", "did not write it")):
        code, _, errors = unloc("report", "tal.json", "-o", out)
        assert code == 2 and word in errors
    code, _, errors = unloc("report", "nowhere")
    assert code == 2 and "does not exist" in errors and len(errors.splitlines()) == 1
    (scored / "videos").mkdir()
    for words, word in (
        (["tal.json", "--videos", "nowhere"], "nowhere does not exist"),
        (["tal.json", "--videos", "videos"], "holds none of the 3 videos"),
        (["tal.jsonl"], "is a manifest"),
    ):
        code, _, errors = unloc("report", *words)
        assert code == 2 and word in errors and len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 375])
def test_a_browser_shows_it_jumps_by_keys_and_sends_no_request(width, tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    render_video(tmp_path / "videos" / "v1.mp4", num_frames=100)
    rows = [VideoRow("v1", "test", 10.0)]
    rows += [InstanceRow("v1", "test", name, [2.0, 4.0]) for name in HOSTILE]
    save_manifest(build_manifest(name="m", tasks=("tal",), rows=rows, classes=HOSTILE), tmp_path / "m.jsonl")
    found = [{"label": name, "score": 0.5, "segment": [n, n + 2.5]} for n, name in enumerate(HOSTILE)]
    (tmp_path / "p.json").write_text(json.dumps({"results": {"v1": found}}))
    report("p.json", "-m", "m.jsonl", "--split", "test", "--videos", "videos")
    with chromium_page(tmp_path / "report.html", tmp_path / "profile", width) as page:
        page.until("document.querySelectorAll('.seg').length === 16")
        page.until("document.querySelector('video').readyState > 0")
        names = page.js("[...document.querySelectorAll('.name b')].map(one => one.textContent)")
        assert sorted(names) == sorted(HOSTILE)
        page.press("j")
        assert page.js("document.activeElement.className") == "seg truth current"
        assert page.js("document.querySelector('video').currentTime") == 2.0
        page.press("j")
        assert "predicted" in page.js("document.querySelector('.status').textContent.toLowerCase()")
        page.press("ArrowRight")
        page.press("k")
        assert page.js("document.querySelector('video').currentTime") == 2.0
        page.js("document.querySelectorAll('.seg.found')[3].click()")
        time = page.js("document.querySelector('video').currentTime")
        assert time == page.js("+segments[at].start") and page.js("at") == 7
        page.press(" ")
        page.until("!document.querySelector('video').paused")
        page.press(" ")
        assert page.js("document.querySelector('video').paused")
        page.js("document.querySelector('video').focus()")
        page.press("j")
        assert page.js("at") == 8
        page.js("document.querySelector('[aria-label=\"Previous segment\"]').click()")
        assert page.js("at") == 7
        unlabelled = (
            "[...document.querySelectorAll('button')].filter(b => !(b.textContent.trim() || b.ariaLabel)).length"
        )
        assert page.js(unlabelled) == 0
        assert page.js("document.documentElement.scrollWidth") <= width
        assert page.js("document.querySelectorAll('main img[src=x], main script').length") == 0
        assert all(url.startswith(("file:", "data:")) for url in page.requests), page.requests
        assert not page.complaints


@pytest.mark.slow
def test_a_browser_draws_predictions_that_no_video_has(scored, report):
    windows = [[0, 0, 0.5]], [[1e9, 2e9, 0.5]], [[-5, 3, float("nan")]], [[9, 2, 1e300]], []
    rows = [answer(n, pred_relevant_windows=one) for n, one in enumerate(windows)]
    rows[0]["pred_saliency_scores"] = [float("nan")] * 3
    write_mr(scored / "odd.jsonl", rows)
    report("odd.jsonl")
    with chromium_page(scored / "report.html", scored / "profile") as page:
        for number in range(len(windows)):
            page.js(f"show({number}); jump(0); setZoom(256)")
            assert page.js("document.querySelectorAll('.row').length") == 1
        assert not page.complaints


# -- Of a video


def test_a_video_is_answered_and_shown_with_its_relevance(tmp_path, report, unloc, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path / "tokens"))
    render_video(tmp_path / "own #1.mp4", num_frames=60)
    queries = ["-q", "a red circle rising", "-q", HOSTILE[0], "--checkpoint", "toy"]
    _, data = report("own #1.mp4", *queries)
    (video,) = data["videos"]
    assert data["title"] == "own #1.mp4" and video["source"] == "own%20%231.mp4"
    assert video["duration"] == pytest.approx(6.0, abs=0.2) and Path("report.html").is_file()
    assert [row["text"] for row in video["rows"]] == ["a red circle rising", HOSTILE[0]]
    curve = video["rows"][0]["curves"][0]
    assert curve["name"] == "relevance" and len(curve["times"]) == len(curve["values"]) > 4
    assert "NOT a rendered video" in data["notes"][0] and data["metrics"] is None
    code, _, errors = unloc("predict", "own #1.mp4", *queries, "--min-score", 0, "--out", "found.html")
    assert code == 0, errors
    (found,) = data_of(Path("found.html").read_text())["videos"]
    assert len(found["rows"][0]["found"]) == 5 and found["rows"][0]["curves"] == video["rows"][0]["curves"]


def test_a_video_needs_a_checkpoint_and_nothing_else_takes_one(scored, unloc):
    render_video(scored / "v1.mp4")
    wrong = {"give --checkpoint": ["v1.mp4"], "is no video": ["tal.json", "-q", "a"]}
    for saying, words in (wrong | {"goes without": ["v1.mp4", "-q", "a", "--split", "test"]}).items():
        code, _, errors = unloc("report", *words)
        assert code == 2 and saying in errors and len(errors.splitlines()) == 1
