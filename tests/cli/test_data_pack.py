"""`unloc data pack` as a user meets it."""

from typer.testing import CliRunner

from unloc.annotations.schema import VideoRow, build_manifest, load_manifest, save_manifest
from unloc.cli import app
from unloc.video.locate import index_videos


def test_packing_reports_what_it_wrote_and_how_to_read_it(tmp_path, video_folder):
    rows = [VideoRow(name, "t", 1) for name in ("v0", "v1", "gone")]
    save_manifest(build_manifest(name="m", tasks=("mr",), rows=rows), tmp_path / "m.jsonl")
    words = ["data", "pack", tmp_path / "m.jsonl", "--videos", video_folder, "--out", tmp_path / "out"]
    for written in (1, 0):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0 and f"2 videos, 0.0 MB, in 1 shards ({written} written now)" in done.stdout
        assert "missing: gone" in done.stderr
    pattern = done.stdout.split("--shards '")[1].split("'")[0]
    assert list(index_videos(shards=pattern).locate(load_manifest(tmp_path / "m.jsonl").videos)[0]) == ["v0", "v1"]
