"""`unloc data pack --frames` as a user meets it."""

from unloc.annotations.schema import VideoRow, build_manifest, save_manifest
from unloc.video.frame_shards import packed_videos


def test_packing_frames_reports_failures_and_fails_below_the_coverage(tmp_path, video_folder, unloc):
    rows = [VideoRow(name, split, 1) for name in ("v0", "gone", "v1") for split in ("train", "val")]
    save_manifest(build_manifest(name="m", tasks=("mr",), rows=rows), tmp_path / "m.jsonl")
    line = ["data", "pack", tmp_path / "m.jsonl", "--videos", video_folder, "--out", tmp_path / "out", "--frames", 5]
    for coverage, expected in ((1, 2), (0.6, 0)):  # the second run finds the shard
        code, out, err = unloc(*line, "--size", 32, "--workers", 1, "--coverage", coverage)
        assert code == expected and "10 frames of 2 videos" in out and "1 failed" in out
        assert "failed: gone: not_found" in err and ("2 of 3 videos are packed" in err) == bool(expected)
    assert list(packed_videos(tmp_path / "out")) == ["v0", "v1"]
    for wrong in (["--fps", 2], ["--size", 0]):
        code, _, err = unloc(*line, *wrong)
        assert code == 2 and len(err.splitlines()) == 1 and wrong[0] in err
