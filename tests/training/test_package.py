"""`unloc package`: a folder that answers as its run does, where neither the run nor the file of its tower is."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import unloc as library
from tests.small_clip import small_clip
from tests.training.test_end_to_end import trained as on_frames  # noqa: F401
from tests.training.test_end_to_end import world  # noqa: F401
from tests.training.test_pretraining import TAL, cache, clips, trained  # noqa: F401
from tests.training.test_several_tasks import whole  # noqa: F401
from tests.training.test_trainer import Killed, at_step, kill, recipe_for
from unloc.errors import InputError, MissingError, TowerError
from unloc.inference.load import load_model
from unloc.recipes import load_recipe
from unloc.training import package as module
from unloc.training.package import package
from unloc.training.run import fit_recipe

SIZES = ["model.width=16", "model.num_heads=2", "model.mlp_width=32", "model.num_layers=1", "data.num_steps=8"]
SIZES += ["targets.range_edges=[0,2,4,8,inf]", "train.batch_size=2", "train.epochs=2", "data.val_split=val"]
QUERY = "the square moves 1"


@pytest.fixture(scope="module")
def run(token_world, tmp_path_factory) -> Path:
    """A short run of localization on imported tokens."""
    folder = tmp_path_factory.mktemp("runs") / "tal"
    fit_recipe(recipe_for("tal", "train.epochs=0.3"), *token_world, folder, threads=1)
    return folder


def text_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def moments(found):
    return [(one.start, one.end, one.score, one.text) for one in found.moments]


@pytest.mark.parametrize("how", ["file", "tag"])
def test_a_frozen_towers_weights_travel_with_the_model(how, world, tiny, weights_file, tmp_path, unloc, monkeypatch):  # noqa: F811
    manifest, _, videos = world
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path / "tokens"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights_file, "own.safetensors")
    weights = ["--pretrained", "own.safetensors", "--like", "ours"] if how == "file" else ["--pretrained", "finetuned"]
    words = ["--videos", videos, "--cache", "cache", "--frames", 12, "--workers", 0, "--tower", tiny]
    assert unloc("extract", manifest, *words, *weights)[0] == 0
    own = [f"towers.pretrained={tmp_path / 'own.safetensors'}"] if how == "file" else []
    words = ["--manifest", manifest, "--cache", "cache", "--work-dir", "run", "--threads", 1]
    code, _, errors = unloc("fit", "synth_mr", *SIZES, *own, *words)
    assert code == 0, errors
    asked = ["predict", videos / "v1.mp4", "-q", QUERY, "--min-score", 0, "--json", "--checkpoint"]
    expected = unloc(*asked, "run")
    assert expected[0] == 0, expected[2]
    for name, option in {"small": [], "whole": ["--with-tower"]}.items():
        code, out, errors = unloc("package", "run", "--out", name, *option)
        assert code == 0 and f"wrote {name}" in out, errors
        assert ("not in the folder" in errors) == (how == "file" and not option)
    save_file(small_clip(std=0.1).state_dict(), "wrong.safetensors")
    code, _, errors = unloc("package", "run", "--out", "wrong", "--with-tower", "--pretrained", "wrong.safetensors")
    known = "not the weights of its training" if how == "file" else "--like"  # a tag has its own settings
    assert code == 2 and known in errors and not list(Path().glob("*wrong*/"))
    for folder in ("small", "whole"):
        for file in Path(folder).rglob("*"):
            assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()
    assert ("pretrained=" in text_of(Path("small"))) == (how == "file")
    assert "pretrained=" not in text_of(Path("whole")) and "unknown, see" in text_of(Path("whole"))

    Path("elsewhere").mkdir()
    kept = Path("own.safetensors").rename("elsewhere/kept.safetensors")
    for folder in ("small", "whole"):
        Path(folder).rename(f"elsewhere/{folder}")
    for folder in ("run", "cache", "tokens"):
        shutil.rmtree(folder)
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda config: "/nowhere")
    found = unloc(*asked, "elsewhere/whole")
    assert found[:2] == expected[:2], found[2]
    code, _, errors = unloc(*asked, "elsewhere/small")
    assert code == 2 and "own.safetensors" in errors if how == "file" else code == 2
    if how == "file":  # by hand, under the name that is stated
        kept = kept.rename("elsewhere/own.safetensors")
        assert unloc(*asked, "elsewhere/small", "--pretrained", kept)[:2] == expected[:2]


def test_the_tower_of_another_run_travels_with_the_model(clips, trained, cache, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path / "tokens"))
    run, video = tmp_path / "tal", clips / "videos" / "v1.mp4"
    fit_recipe(load_recipe("synth_tal", TAL), clips / "tal.jsonl", cache, run, threads=1)
    with pytest.raises(InputError, match="the tower of run run"):
        library.load(run)
    with pytest.raises(InputError, match="the tower of run run"):
        package(run, tmp_path / "not", with_tower=True)
    assert not list(tmp_path.glob("*not*"))
    expected = moments(library.load(run, pretrained=str(trained)).predict(video))
    package(run, tmp_path / "model", with_tower=True, pretrained=str(trained))
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path / "others"))
    assert moments(library.load(moved).predict(video)) == expected
    package(trained, tmp_path / "clips")  # of classification, which says nothing about times
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"^```python\n(.*?)^```", text_of(tmp_path / "clips"), re.M | re.S)[1], {})


def test_a_model_with_trained_towers_makes_the_same_tokens(world, on_frames, tmp_path, unloc, monkeypatch):  # noqa: F811
    manifest, _, videos = world
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path / "tokens"))
    package(on_frames, tmp_path / "model", with_tower=True)
    assert not (tmp_path / "model" / "tower").exists()  # unloc ships what toy was before
    video, model = videos / "v1.mp4", library.load(tmp_path / "model", cache=tmp_path / "one")
    expected = library.load(on_frames, cache=tmp_path / "other").predict(video, QUERY)
    assert moments(model.predict(video, QUERY)) == moments(expected)
    shutil.copy(video, tmp_path / "video.mp4")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"^```python\n(.*?)^```", text_of(tmp_path / "model"), re.M | re.S)[1], {})
    words = ["--videos", videos, "--frames", 12, "--workers", 0, "--token-dtype", "float32"]
    code, _, errors = unloc("extract", manifest, "--cache", tmp_path / "c", "--tower", tmp_path / "model", *words)
    assert code == 0, errors
    words = ["--manifest", manifest, "--cache", tmp_path / "c", "--split", "val", "--out", tmp_path / "scores"]
    for one in (on_frames, tmp_path / "model"):
        code, _, errors = unloc("eval", one, *words)
        assert code == 0, errors


def test_the_card_has_the_scores_of_this_checkpoint_with_floors_and_intervals(token_world, run, tmp_path, unloc):
    manifest, tokens = token_world
    own = shutil.copytree(run, tmp_path / "run", symlinks=True)
    code, _, errors = unloc("package", own, "--out", tmp_path / "before")
    assert code == 0 and "was not evaluated" in errors and "Not evaluated" in text_of(tmp_path / "before")
    code, _, errors = unloc("eval", own, "--task", "tal", "--manifest", manifest, "--cache", tokens)
    assert code == 0, errors
    assert unloc("package", own, "--out", tmp_path / "model")[0] == 0
    report = json.loads((own / "eval" / "test" / "metrics.json").read_text())
    row = next(line for line in text_of(tmp_path / "model").splitlines() if line.startswith("| mAP@0.50 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == f"{report['metrics']['mAP@0.50']:.2f}" and " to " in cells[2]
    assert cells[3:] == [f"{floor['mAP@0.50']:.2f}" for floor in report["floors"].values()]
    card, env = text_of(tmp_path / "model"), json.loads((own / "env.json").read_text())
    assert all(value in card for value in env["data"].values()) and report["annotations_sha256"] in card
    checkpoint = json.loads((own / "checkpoints" / "best" / "checkpoint.json").read_text())
    for name in ("best", "last"):  # another checkpoint, which these scores are not of
        place = own / "checkpoints" / name / "checkpoint.json"
        place.write_text(json.dumps(checkpoint | {"step": 10_000}))
    assert unloc("package", own, "--out", tmp_path / "later")[0] == 0
    assert "Not evaluated" in text_of(tmp_path / "later")


def test_the_folder_is_evaluated_loaded_and_started_from_as_the_run(token_world, run, tmp_path, unloc):
    manifest, tokens = token_world
    package(run, tmp_path / "model")
    one, other = load_model(run), library.load_model(tmp_path / "model")
    assert one.info.classes == other.info.classes and one.info.fingerprint == other.info.fingerprint
    weights = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    found = []
    for name in (run, tmp_path / "model"):
        words = ("--task", "tal", "--manifest", manifest, "--cache", tokens, "--out", tmp_path / "scores")
        assert unloc("eval", name, *words)[0] == 0
        found.append(json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"])
    assert found[0] == found[1]
    recipe = recipe_for("tal", "train.epochs=0.1", "optim.lr=0")
    fit_recipe(recipe, manifest, tokens, tmp_path / "next", threads=1, init=tmp_path / "model")
    assert torch.equal(
        load_model(tmp_path / "next").model.state_dict()["relevance_head.blocks.0.linear.weight"],
        weights[0]["relevance_head.blocks.0.linear.weight"],
    )


def test_all_tasks_of_a_run_are_in_its_folder(whole, tmp_path):  # noqa: F811
    package(whole, tmp_path / "model")
    for task in ("mr", "tal", "as", "hd"):
        one, other = load_model(whole, tasks=[task]), load_model(tmp_path / "model", tasks=[task])
        assert one.info == other.info and other.info.recipe.task == task
        assert (one.calibration is None) == (other.calibration is None)
    card = text_of(tmp_path / "model")
    assert "action segmentation" in card and "## Classes of tal" in card


def test_names_of_classes_are_text_and_nothing_else(run, tmp_path):
    markdown_it = pytest.importorskip("markdown_it", reason="a parser of CommonMark, which rich brings")
    names = ["```\n<script>alert(1)</script>", "](javascript:x) | *a*\u202e\u2028# b", "日本"]
    own = shutil.copytree(run, tmp_path / "run", symlinks=True)
    for place in (own / "checkpoints").glob("*/checkpoint.json"):
        values = json.loads(place.read_text())
        recipe = yaml.safe_load(values["recipe"]) | {"name": "<img src=x>|`a` # [b](c)"}
        values |= {"classes": names, "recipe": yaml.safe_dump(recipe)}
        place.write_text(json.dumps(values))
    package(own, tmp_path / "model")
    assert list(load_model(tmp_path / "model").info.classes) == names
    card = text_of(tmp_path / "model")
    parsed = markdown_it.MarkdownIt().parse(card)
    assert not any("html" in one.type for one in parsed) and "\u202e" not in card and "\u2028" not in card
    (block,) = [one.content for one in parsed if one.type == "fence" and one.info == "text"]
    assert block.splitlines() == [repr(name) for name in names] and "日本" in block
    inline = [child.type for one in parsed for child in one.children or ()]
    assert not {"html_inline", "code_inline", "link_open", "image"} & set(inline)


def test_what_cannot_be_packaged_is_one_line_and_nothing_is_left(token_world, run, tmp_path, unloc, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Path(shutil.copytree(run, "run", symlinks=True))
    Path("film.mp4").write_text("a film")
    Path("films").mkdir()
    Path("films/film.mp4").write_text("a film")
    package("run", Path("model"))
    before = text_of(Path("model"))
    with pytest.raises(Killed):
        fit_recipe(recipe_for("mr"), *token_world, Path("killed"), threads=1, on_step=at_step(1, kill))
    shutil.rmtree("killed/checkpoints", ignore_errors=True)
    for words, named in {
        ("nothing", "--out", "new"): "no checkpoint here",
        ("killed", "--out", "new"): "no checkpoint here",
        ("run", "--out", "model"): "--overwrite",
        ("run", "--out", "films"): "--overwrite",
        ("run", "--out", "films", "--overwrite"): "more in it than a model folder",
        ("run", "--out", "film.mp4", "--overwrite"): "more in it than a model folder",
        ("run", "--out", "run"): "in the run itself",
        ("run", "--out", "run/checkpoints/best/model"): "in the run itself",
        ("model", "--out", "new"): "a model folder already",
        ("run", "--out", "new", "--with-tower"): "whose tower is not known",
        ("run", "--out", "new", "--pretrained", "film.mp4"): "belongs to --with-tower",
    }.items():
        code, out, errors = unloc("package", *words)
        assert code == 2 and named in errors and errors.count("\n") == 1 and not out, (words, errors)
    (own / "env.json").write_text('{"data": ')
    code, _, errors = unloc("package", "run", "--out", "new")
    assert code == 2 and "env.json: missing or damaged" in errors
    (own / "checkpoints" / "best" / "model.safetensors").write_bytes(b"half")
    (own / "checkpoints" / "last" / "model.safetensors").write_bytes(b"half")
    assert unloc("package", "run", "--out", "new")[0] == 2
    assert text_of(Path("model")) == before and sorted(Path("films").iterdir()) == [Path("films/film.mp4")]
    assert sorted(one.name for one in Path().iterdir()) == ["film.mp4", "films", "killed", "model", "run"]


def test_a_full_disk_leaves_the_old_folder_and_overwriting_replaces_it(run, tmp_path, monkeypatch):
    package(run, tmp_path / "model")
    before = text_of(tmp_path / "model")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "card", full)
        with pytest.raises(Exception, match="no space left"):
            package(run, tmp_path / "model", overwrite=True)
    assert text_of(tmp_path / "model") == before and [one.name for one in tmp_path.iterdir()] == ["model"]
    (tmp_path / "model" / "README.md").write_text("old")
    package(run, tmp_path / "model", overwrite=True)
    assert text_of(tmp_path / "model") == before and [one.name for one in tmp_path.iterdir()] == ["model"]


def test_an_unfinished_run_says_so(token_world, tmp_path, unloc):
    recipe = recipe_for("mr", "train.epochs=1", "train.eval_every_epochs=0.1")
    with pytest.raises(Killed):
        fit_recipe(recipe, *token_world, tmp_path / "run", threads=1, on_step=at_step(5, kill))
    code, _, errors = unloc("package", tmp_path / "run", "--out", tmp_path / "model")
    assert (
        code == 0 and "training is not finished" in errors and "training stopped after" in text_of(tmp_path / "model")
    )


def test_a_damaged_folder_is_one_line(run, tmp_path, unloc, token_world):
    package(run, tmp_path / "model")
    words = ("--task", "tal", "--manifest", token_world[0], "--cache", token_world[1])
    for name, content in {"model.safetensors": b"", "checkpoint.json": b"{}"}.items():
        broken = shutil.copytree(tmp_path / "model", tmp_path / name)
        (broken / name).write_bytes(content)
        code, _, errors = unloc("eval", broken, *words)
        assert code == 2 and "checkpoint" in errors and errors.count("\n") == 1


def hub_with(folder: Path, name: str, hub: Path) -> None:
    """The Hub's own cache of a repository, as a download leaves it."""
    repository, commit = hub / f"models--{name.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_a_name_on_the_hub_is_a_model(run, token_world, tmp_path, unloc, monkeypatch):
    from huggingface_hub import constants

    package(run, tmp_path / "model")
    hub_with(tmp_path / "model", "someone/moments", tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name in ("someone/moments", "hf-hub:someone/moments"):
        assert library.load_model(name).info.classes == load_model(run).info.classes
    words = ("--task", "tal", "--manifest", token_world[0], "--cache", token_world[1])
    assert unloc("eval", "someone/moments", *words, "--out", "scores")[0] == 0
    code, _, errors = unloc("eval", "someone/moments", *words)
    assert code == 2 and "--out" in errors and not Path("someone").exists()
    fit_recipe(recipe_for("tal", "train.epochs=0.1"), *token_world, Path("next"), threads=1, init="someone/moments")
    with pytest.raises(MissingError, match=r"nobody/nothing: is no folder here.*copy the model folder"):
        library.load("nobody/nothing")
    code, _, errors = unloc("predict", "film.mp4", "-q", "a", "--checkpoint", "nobody/nothing")
    assert code == 2 and errors.count("\n") == 1
    Path("runs").mkdir()  # then it is a mistyped path
    with pytest.raises(MissingError, match="no checkpoint here"):
        library.load("runs/mistyped")


def test_only_what_a_model_needs_is_downloaded(run, tmp_path, monkeypatch):
    import huggingface_hub

    package(run, tmp_path / "model")
    asked = []

    def download(name, **options):
        asked.append((name, options["allow_patterns"]))
        return str(tmp_path / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    library.load_model("owner/name")
    assert asked == [("owner/name", ["*.json", "*.safetensors", "README.md"])]


def test_a_carried_tower_is_checked(tiny, weights_file, tmp_path):
    from unloc.model.clip import pretrained_clip, save_clip

    clip, name, like = pretrained_clip(tiny, "grey", None)
    save_clip(tmp_path / "clip.safetensors", clip, tiny, name, like)
    again, *names = pretrained_clip(tiny, str(tmp_path / "clip.safetensors"), None)
    assert names == ["grey", None] and again.visual.preprocess_cfg == clip.visual.preprocess_cfg
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in clip.state_dict().items())
    with pytest.raises(TowerError, match="not weights of ViT-B-16"):
        pretrained_clip("ViT-B-16", str(tmp_path / "clip.safetensors"), None)
    whole_file = (tmp_path / "clip.safetensors").read_bytes()
    (tmp_path / "clip.safetensors").write_bytes(whole_file[:-100])
    with pytest.raises(TowerError, match="not weights of tiny"):
        pretrained_clip(tiny, str(tmp_path / "clip.safetensors"), None)
