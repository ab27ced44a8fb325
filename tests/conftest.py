"""Shared by all tests: shapes are checked, the folder of references is found or skipped, small videos are rendered."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec import AbstractFileSystem
from hypothesis import settings
from jaxtyping import install_import_hook

from unloc.annotations.schema import Row, build_manifest, save_manifest

# Before PyTorch is loaded: threads of OpenMP that wait leave the core to others, also in processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# From here on every tensor shape stated in ops and model is checked at each call.
install_import_hook(["unloc.ops", "unloc.model"], "beartype.beartype")

settings.register_profile("ci", derandomize=True)  # `make test`: the same examples in every run
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Each process of `pytest -n` gets neighbouring tests, which share fixtures; an idle one takes those of another."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of references beside the project; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here: references, golden values and real videos are not part of the project")
    return SHARED


@pytest.fixture(scope="session", params=["official", "own"])
def scenic(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """The official implementation's tensors, and ours of the same names, which are always here (`tests.golden`)."""
    if request.param == "own":
        return dict(np.load(Path(__file__).parent / "golden" / "model.npz"))
    return dict(np.load(request.getfixturevalue("shared") / "golden" / "scenic" / "unloc_golden.npz"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What a run sets does not last: with a thread per core in each of several processes the next tests take longer."""
    yield
    if "torch" in sys.modules and sys.modules["torch"].get_num_threads() > 1:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def mirrors_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Local copies of remote caches are not left in the home folder."""
    os.environ["UNLOC_MIRRORS"] = str(tmp_path_factory.mktemp("mirrors"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server of this machine."""
    pytest.importorskip("moto", reason="moto serves S3 for tests: pip install 'unloc[dev]'")
    pytest.importorskip("s3fs", reason="s3fs is an extra")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> AbstractFileSystem:
    """The S3 server as fsspec sees it, here and in processes started from here."""
    words = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    for name, value in (words | {"ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.filesystem("s3", skip_instance_cache=True).clear_instance_cache()
    return fsspec.filesystem("s3")


@pytest.fixture(scope="session")
def token_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(manifest, cache) of a small learnable world."""
    from tests.token_world import make_token_world

    return make_token_world(tmp_path_factory.mktemp("token_world"))


@pytest.fixture(scope="session")
def undrawn() -> Iterator[None]:
    """Runs draw no curves: a picture takes longer than a small run trains."""
    from unloc.training import trainer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "draw_curves", lambda run: None)
        yield


def render_video(path: Path, *, num_frames: int = 20, fps: int = 10, seed: int = 0) -> Path:
    """A small H.264 file of noise blocks that change from frame to frame."""
    import av

    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"g": "8", "bf": "2"}
        for _ in range(num_frames):
            blocks = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)
            image = np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_manifest(path: Path, *rows: Row) -> Path:
    """A manifest of moment retrieval with these rows."""
    save_manifest(build_manifest(name="m", tasks=("mr",), rows=rows), path)
    return path


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos v0.mp4 … v6.mp4 of 1.5 to 3.3 s."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(7):
        render_video(folder / f"v{number}.mp4", num_frames=15 + 3 * number, seed=number)
    return folder


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Manifests for three tasks, perfect predictions for each, and class lists, in the current folder."""
    from tests.cli.scored import make_scored

    monkeypatch.chdir(tmp_path)
    return make_scored(tmp_path)


@pytest.fixture
def unloc(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    from unloc.cli import main

    def run(*words):
        monkeypatch.setattr("sys.argv", ["unloc", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory):
    """Weights of `tiny` (`tests.small_clip`)."""
    from safetensors.torch import save_file

    from tests.small_clip import small_clip

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(small_clip().state_dict(), path)
    return path


@pytest.fixture
def list_model(tmp_path_factory, monkeypatch):
    """Adds a model to those that open_clip lists, for one test."""
    import open_clip

    def add(name, architecture):
        config = tmp_path_factory.mktemp("config") / f"{name}.json"
        config.write_text(json.dumps(architecture))
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
        open_clip.add_model_config(config)
        return name

    return add


@pytest.fixture
def tiny(list_model, monkeypatch, weights_file):
    """The name of a small model that open_clip lists now; the weights of each of its tags are the file."""
    import open_clip

    from tests.small_clip import ARCHITECTURE, TAGS

    list_model("tiny", ARCHITECTURE)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", TAGS)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda config: str(weights_file))
    return "tiny"
