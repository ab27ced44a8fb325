"""Every code block of README, docs/, docker/ and the recipes' page, and every `--help` example, is run here.

The commands run as they are printed, in a folder with the files they name, made from a small rendered world. What a
test cannot have is replaced by `STAND_INS`; training is small, and extraction runs without Ray (`tests/pipeline` has
it). What runs in Docker, on a cluster or until it is stopped (`unloc serve`), and commands in `text` blocks, are only
parsed. The clients of `docs/serve.md` run in `tests/cli/test_serve.py`.
"""

import json
import re
import shlex
import shutil
import threading
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import typer
from omegaconf import OmegaConf

from tests.extension import install
from unloc.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md")))]
PAGES += ["docker/README.md", "manifests/recipes/README.md"]
# The sizes of the paper take hours on two cores.
TINY = "model.width=32 model.num_heads=2 model.mlp_width=32 model.num_layers=1 train.batch_size=4 train.epochs=0.2"
ENDLESS = ("serve",)
OF_THE_PAPER = ("charades_b", "anet_captions_b", "qvhighlights_b", "anet_tal_b", "anet_zs50_b", "thumos14_b", "coin_b")
STAND_INS = {
    "--videos 20 --seed 0": "--videos 2 --seed 0",
    "--videos 40 --seed 5": "--videos 6 --seed 5",
    "--tower ViT-B-16 --pretrained openai": "--tower toy",  # no weights can be fetched here
    "--tower ViT-B-16 --pretrained open_clip_model.safetensors --like openai": "--tower toy",
    "--tower ViT-B-16-quickgelu --pretrained open_clip_model.safetensors": "--tower toy",
    "--frames 512": "--frames 8",
    **{f"fit {name}": f"fit {name} towers.name=toy data.num_frames=null" for name in OF_THE_PAPER},
    "towers.frame_chunk=32": "towers.frame_chunk=32 data.num_steps=8",
    "--frames 128 --size 256": "--frames 8 --size 112",
    "--tower runs/pixels --frames 128": "--tower runs/pixels --frames 8",
    "--frames 32 --size 256": "--frames 8 --size 112",
    "pretrain kinetics_400_b": "pretrain kinetics_400_b towers.name=toy towers.pretrained= data.num_frames=8 "
    "data.num_steps=8",
    "--tower runs/k400 --frames 128": "--tower runs/k400 --frames 8",
    "--frames 128": "--frames 16",
    "/mnt/unloc/": "",
    "{000000..000127}": "000000",
    "s3://bucket/cache": "bucket-cache",
    "3MSZA": "v_synth5_00003",
}


def blocks(page):
    """(language, text, line) of every fenced block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], dedent(found[2]), text[: found.start()].count("\n") + 2


def command_lines(text):
    """The lines of a block, continued ones joined, without comments."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def commands_of(command=None, words=("unloc",)):
    """(words, command) of every leaf of the command line."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, child in command.commands.items():
        yield from commands_of(child, (*words, name))


def help_examples():
    """A case for every command, with the examples of its help text."""
    for words, command in commands_of():
        examples = re.findall(r"Example: (unloc .*?)(?:\n\s*\n|$)", command.help or "", re.DOTALL)
        yield pytest.param(words, [" ".join(e.split()) for e in examples], id=" ".join(words[1:]))


def unloc_part(words):
    """The words of the unloc command that a line runs, also through docker or ray; None where it runs none."""
    if words[0] == "unloc":
        return words
    if words[:3] == ["ray", "job", "submit"]:
        return words[words.index("--") + 1 :]
    if words[:2] == ["docker", "run"]:
        image = next(i for i, word in enumerate(words) if word.startswith("unloc:"))
        return ["unloc", *words[image + 1 :]]
    return None


def parse(words):
    """Raise click's error where the command line would refuse the words."""
    command, context = typer.main.get_command(app), None
    words = list(words)
    while True:
        context = command.make_context(words[0], words[1:], parent=context)
        if not hasattr(command, "commands"):
            return
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        words = [name, *rest]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is_and_its_commands_parse(page):
    for language, text, line in blocks(page):
        assert language in ("bash", "python", "json", "text", "yaml"), f"{page}:{line}: a block without a language"
        if language == "text":  # what runs on several machines, say
            text = "".join(one for one in text.splitlines(keepends=True) if one.startswith("unloc "))
        for words in command_lines(text) if language in ("bash", "text") else ():
            assert words[0] in ("unloc", "make", "docker", "ray", "pip"), f"{page}:{line}: {words[0]}"
            if (part := unloc_part(words)) is not None:
                parse(part)


def test_make_targets_that_the_pages_name_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for language, text, line in blocks(page):
            for words in command_lines(text) if language == "bash" else ():
                assert words[0] != "make" or words[1] in targets, f"{page}:{line}: make {words[1]}"


def write_class_split(manifest, folder):
    """A split of the manifest's classes by which one training video shows seen classes only."""
    classes, *rows = map(json.loads, manifest.read_text().splitlines())
    instances = [row for row in rows if row["kind"] == "instance"]
    first = next(row["video_id"] for row in instances if row["split"] == "training")
    seen = {row["label"] for row in instances if row["video_id"] == first}
    for side, labels in (("train", seen), ("test", set(classes["classes"]) - seen)):
        path = Path(folder, side, "split_0.list")
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{label}\n" for label in sorted(labels)))


def write_moments(manifest, path):
    """The sentences of a manifest as someone's own table, without splits."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    found = [(row["video_id"], *row["segments"][0], row["text"]) for row in rows if row["kind"] == "query"]
    path.write_text("video,start,end,query\n" + "".join(f'{a},{b},{c},"{d}"\n' for a, b, c, d in found))


def write_null_queries(folder):
    """Labels and predictions of generalized moment retrieval, of which one query is null."""
    truth = [{"qid": n, "vid": f"v{n}", "query": "a goal", "duration": 60} for n in range(3)]
    truth = [row | {"relevant_windows": [[10, 18]] if row["qid"] else []} for row in truth]
    found = [{"qid": n, "pred_relevant_windows": [[10, 17, 0.8]], "pred_exist_score": n / 2} for n in range(3)]
    for name, rows in (("soccer_gmr_test", truth), ("gmr_predictions", found)):
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with every file that the pages and the help texts name, made by the command line itself."""
    from typer.testing import CliRunner

    folder = tmp_path_factory.mktemp("documented")

    def run(line):
        done = CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
        assert done.exit_code == 0, f"{line}: {done.output}"

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("data synth world --videos 6 --seed 5 --workers 1")
        official = Path("world/annotations")
        for path in [official / "activitynet.json", *official.glob("charades_sta/*"), *official.glob("qvhighlights/*")]:
            shutil.copy(path, path.name)
        for name, split in (("train", "train"), ("val_1", "val"), ("val_2", "test")):
            shutil.copy(official / "activitynet_captions" / f"{split}.json", f"{name}.json")
        shutil.copy("activitynet.json", "activity_net.v1-3.min.json")
        shutil.copy(official / "coin.json", "COIN.json")
        text = Path("activitynet.json").read_text().replace('"training"', '"Validation"')
        Path("thumos14.json").write_text(text.replace('"validation"', '"Test"').replace('"testing"', '"Test"'))
        Path("data").mkdir()
        for name in ("videos", "data/videos"):
            Path(name).symlink_to(folder / "world/videos")
        run("data convert activitynet --annotations activitynet.json --out activitynet.jsonl")
        run("data convert activitynet-captions --annotations world/annotations/activitynet_captions --out mr.jsonl")
        charades = " ".join(map(str, Path().glob("[cC]harades*")))
        run(f"data convert charades-sta --annotations {charades} --out charades.jsonl")
        write_class_split(Path("activitynet.jsonl"), "train_50_test_50/ActivityNet")
        for name in ("anet.jsonl", "data/tal.jsonl"):
            shutil.copy("activitynet.jsonl", name)
        run("data convert coin --annotations COIN.json --out as.jsonl")
        run("data convert qvhighlights --annotations world/annotations/qvhighlights --out hd.jsonl")
        for name in ("m.jsonl", "data/mr.jsonl"):
            shutil.copy("mr.jsonl", name)
        for manifest in ("mr.jsonl", "activitynet.jsonl", "charades.jsonl", "as.jsonl", "hd.jsonl"):
            run(f"extract {manifest} --videos videos --cache token_cache --tower toy --fps 4 --workers 0")
        shutil.copytree("token_cache", "data/cache")
        run("data synth clips_world --videos 2 --seed 6 --clips --workers 1")
        shutil.copy("clips_world/annotations/kinetics.csv", "kinetics.csv")
        Path("clips").symlink_to(folder / "clips_world/clips")
        run("data convert kinetics --annotations kinetics.csv --out data/clips.jsonl")
        run("data pack data/clips.jsonl --videos clips --out data/clip_frames --frames 8 --size 112 --workers 1")
        Path("i3d").mkdir()
        for video in Path("videos").iterdir():
            np.save(f"i3d/{video.stem}.npy", np.zeros((20, 8), dtype=np.float32))
        for part, split in (("1", "train"), ("2", "val")):
            cache = f"data/cache-machine{part} --split {split}"
            run(f"extract mr.jsonl --videos videos --cache {cache} --fps 4 --workers 0")
        run(f"fit synth_mr {TINY} --manifest charades.jsonl --cache token_cache --work-dir trained")
        for name in ("one", "other"):
            shutil.copytree("trained", f"runs/{name}")
            run(f"eval runs/{name} --manifest charades.jsonl --cache token_cache --split train")
        baseline = "eval --baseline --task tal --cache token_cache --split validation"
        run(f"{baseline} --manifest activitynet.jsonl --export anet.json")
        shutil.copy("anet.json", "predictions.json")
        run("data export csv anet.jsonl --out labels.csv")
        write_moments(Path("mr.jsonl"), Path("moments.csv"))
        own = (f"{path.stem}\t1\t3\ta red circle\n" for path in sorted(Path("videos").iterdir()))
        Path("my_table.txt").write_text("".join(own))
        Path("labels.txt").write_text("red circle rising\nblue star blinking\n")
        write_null_queries(folder)
        run("data zero-shot activitynet.jsonl --lists train_50_test_50/ActivityNet --split validation --out splits")
        run("extract splits/split_0/nonsense.jsonl --videos videos --cache token_cache --fps 4 --workers 0")
        run(f"{baseline} --manifest splits/split_0/nonsense.jsonl --export nonsense.json")
        Path("zs50_predictions").mkdir()
        shutil.copy("anet.json", "zs50_predictions/split_0.json")
        labels = sorted(json.loads(Path("activitynet.jsonl").read_text().splitlines()[0])["classes"])
        names = "".join(f"{index},{name}\n" for index, name in enumerate(labels[:5]))
        Path("kinetics_400_labels.csv").write_text("id,name\n" + names)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world that a test may write into, as the current folder."""
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path / "tokens"))
    folder = tmp_path / "here"
    shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def stood_in(line):
    for words, stand_in in STAND_INS.items():
        line = line.replace(words, stand_in)
    return line


def further(words):
    """What a command is given on top: a small model, no Ray, no other processes, which take longer to start."""
    if words[1:3] == ["data", "pack"] and "--frames" in words:
        return ["--workers", "1"]
    if words[1] in ("fit", "pretrain") and "--print-config" not in words:
        few = ["train.batch_size=1"] if words[2] == "anet_zs50_b" else []  # its seen classes are in one video
        return [*(TINY.split()[-2:] if "toy" in words else TINY.split()), *few]
    return ["--workers", "0"] if words[1] == "extract" and "--workers" not in words else []


@pytest.fixture
def bucket(here):
    """The current folder at a URL, which stands in for a bucket."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(here))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(page, here, bucket, unloc, monkeypatch):
    """In the order of the page, so that a block may read what one before it wrote."""
    commands = "".join(text for language, text, _ in blocks(page) if language == "bash")
    if "--cache cache" in commands and "unloc extract" not in commands:
        shutil.copytree("token_cache", "cache")
    if page == "docs/extending.md":
        install(here / "site", monkeypatch)
    if " runs/charades" in commands and "unloc fit" not in commands:
        shutil.copytree("trained", "runs/charades")
    for language, text, line in blocks(page):
        if language == "python":
            exec(compile(stood_in(text), f"{page}:{line}", "exec"), {})
        for words in command_lines(stood_in(text).replace("s3://bucket", bucket)) if language == "bash" else ():
            if words[0] == "unloc" and words[1] not in ENDLESS:
                code, _, errors = unloc(*words[1:], *further(words))
                assert code == 0, f"{page}:{line}: {shlex.join(words)}\n{errors}"


@pytest.mark.parametrize(("command", "examples"), list(help_examples()))
def test_the_example_of_every_help_text_runs(command, examples, here, unloc):
    assert examples, f"{' '.join(command)} --help has no example"
    for example in examples:
        words = shlex.split(stood_in(example))
        assert tuple(words[: len(command)]) == command
        if command[-1] in ENDLESS:
            parse(words)
            continue
        code, _, errors = unloc(*words[1:], *further(words))
        assert code == 0, f"{example}\n{errors}"


def links(page):
    """(words, target) of every relative link."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\[([^][]*)\]\(([^)\s]+)\)", text)
    return [(words, target) for words, target in found if "://" not in target]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for words, target in links(page):
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page}: [{words}]({target})"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in known, f"{page}: [{words}]({target})"


def test_every_page_is_in_the_table_of_contents():
    listed = {target.partition("#")[0] for _, target in links("docs/index.md")}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= listed
    assert "docs/index.md" in {target for _, target in links("README.md")}


def test_every_extra_is_on_the_page_of_the_installation():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "docs" / "install.md").read_text()
    assert [name for name in extras if f"`{name}`" not in text] == []


def test_the_page_of_the_benchmarks_has_the_counts_of_the_datasets_and_the_figures_of_the_recipes():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for path in sorted((ROOT / "manifests" / "datasets").glob("*.yaml")):
        described = OmegaConf.to_container(OmegaConf.load(path))
        if described["recipes"]:
            counts = [n for split in described["splits"].values() for n in split.values()]
            missing = [n for n in counts if not re.search(rf"\| {n:,} \|", text)]
            assert not missing, f"{path.name}: {missing}"
    stated = (ROOT / "manifests" / "recipes" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]*\|([^|]*)\|$", stated, re.MULTILINE))
    found = re.findall(r"^\| `(\w+)` \| [^|]* \|([\d.| ]+)\|$", text, re.MULTILINE)
    assert len(found) >= 15
    for name, figures in found:
        assert re.findall(r"[\d.]+", figures) == re.findall(r" ([\d.]+)\b", rows[name].replace(" over", "")), name


def test_the_manifest_that_the_page_of_data_prints_is_one(here):
    from unloc.annotations.schema import load_manifest

    (text,) = [text for language, text, _ in blocks("docs/data.md") if language == "json"]
    Path("printed.jsonl").write_text(text)
    assert load_manifest(Path("printed.jsonl")).tasks == ("mr", "tal")
