"""Converters, towers and heads of another package: those of docs/extending.md, through the command line."""

import json
from pathlib import Path

import pytest

from tests.extension import install
from unloc.annotations.converters import convert
from unloc.cache.opening import open_cache
from unloc.errors import ConfigError, InputError, TowerError
from unloc.inference.load import load_model
from unloc.model.clip import architecture
from unloc.model.towers import TowerChoice, load_tower
from unloc.plugins import added, added_names
from unloc.recipes import load_recipe
from unloc.training.package import package

SIZES = ["model.width=32", "model.num_heads=2", "model.mlp_width=32", "model.num_layers=1", "data.num_steps=16"]
SIZES += ["train.batch_size=4", "train.epochs=1", "data.val_split="]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    install(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path / "tokens"))
    monkeypatch.chdir(tmp_path)


def test_the_three_files_of_the_page_are_used_by_their_names(installed, video_folder, unloc):
    Path("my_table.txt").write_text("".join(f"v{n}\t0.2\t1.0\tblocks change {n}\n" for n in range(6)))
    words = ("--annotations", "my_table.txt", "--videos", video_folder, "--out", "my.jsonl")
    code, out, errors = unloc("data", "convert", "my-table", *words)
    assert code == 0 and "6 videos, 6 queries" in out, errors
    words = ("--videos", video_folder, "--cache", "cache", "--frames", 16, "--workers", 0)
    code, _, errors = unloc("extract", "my.jsonl", *words, "--tower", "my-tower")
    assert code == 0, errors
    cache = open_cache("cache")
    assert cache.fingerprint["tower.name"] == "my-tower" and cache["v0"].frames.shape == (1, 16, 48)
    words = ("--manifest", "my.jsonl", "--cache", "cache", "--work-dir", "run", "--threads", 1)
    code, _, errors = unloc("fit", "synth_mr", "model.head=my-head", *SIZES, *words)
    assert code == 0, errors
    assert type(load_model("run").model.relevance_head).__name__ == "MyHead"
    asked = ("predict", video_folder / "v1.mp4", "-q", "blocks change 1", "--min-score", 0, "--json", "--checkpoint")
    code, out, errors = unloc(*asked, "run")
    assert code == 0 and json.loads(out)[0]["answers"][0]["moments"], errors
    package("run", Path("model"), with_tower=True)  # which is that of its package
    assert unloc(*asked, "model")[1] == out
    card = Path("model/README.md").read_text()
    assert "pip install my-unloc==1.2" in card and "unknown, see my-unloc==1.2" in card
    code, _, errors = unloc(*asked[:-1], "--checkpoint", "none", "--tower", "my-tower")
    assert code == 2 and "tower.aligned False" in errors


def test_without_the_package_each_name_is_unknown_and_those_there_are_listed(
    video_folder, tmp_path, monkeypatch, unloc
):
    for words, named in {
        ("data", "convert", "my-table", "--annotations", "x.csv", "--out", tmp_path / "m"): "expected one of",
        ("fit", "synth_mr", "model.head=my-head", "--print-config"): "none is installed",
        (
            "predict",
            video_folder / "v0.mp4",
            "-q",
            "a",
            "--checkpoint",
            "none",
            "--tower",
            "my-tower",
        ): "none is installed",
    }.items():
        code, _, errors = unloc(*words)
        assert code == 2 and named in errors and errors.count("\n") == 1, errors
    install(tmp_path / "site", monkeypatch)
    with pytest.raises(InputError, match=r"na-vmr.*fiftyone, my-table"):
        convert("my-tabel", [Path("x")])
    with pytest.raises(ConfigError, match=r"conv, linear, or of other packages: my-head"):
        load_recipe("synth_mr", ["model.head=my-haed"])
    with pytest.raises(TowerError, match=r"other packages \(my-tower\)"):
        architecture("my-towr")


def test_a_tower_of_another_package_stays_frozen_and_has_one_kind_of_token(installed):
    with pytest.raises(TowerError, match="stays frozen"):
        architecture("my-tower")
    with pytest.raises(TowerError, match=r"leave .*--last-k"):
        load_tower(TowerChoice(tower="my-tower", num_layers=2))
    tower = load_tower(TowerChoice(tower="my-tower", tower_dtype="auto", pretrained="some/where/weights.pt"))
    assert tower.fingerprint["pretrained"] == "weights.pt" and tower.fingerprint["dtype"] == "float32"


def test_a_broken_package_and_two_of_one_name_are_one_line(tmp_path, monkeypatch):
    points = (
        "[unloc.heads]\nmissing = my_unloc.nowhere:Head\nbroken = my_unloc.broken:Head\nno-such = my_unloc.head:No\n"
    )
    install(tmp_path / "one", monkeypatch, points)
    (tmp_path / "one" / "my_unloc" / "broken.py").write_text("1 / undefined")
    assert added_names("heads") == ["broken", "missing", "no-such"]
    for name in added_names("heads"):
        with pytest.raises(InputError, match=r"my-unloc, my_unloc.*cannot be imported"):
            added("heads", name)
    other = tmp_path / "two" / "other-1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (other / "entry_points.txt").write_text("[unloc.heads]\nbroken = other:Head\n")
    monkeypatch.syspath_prepend(tmp_path / "two")
    with pytest.raises(InputError, match="several packages add it"):
        added("heads", "broken")


def test_what_unloc_has_itself_is_not_replaced(tmp_path, monkeypatch):
    points = "[unloc.towers]\ntoy = my_unloc.tower:load\n[unloc.heads]\nconv = my_unloc.nowhere:Head\n"
    install(tmp_path, monkeypatch, points)
    assert load_tower(TowerChoice(tower="toy")).fingerprint["frame_dim"] == 128
    assert load_recipe("synth_mr").model.head == "conv"
