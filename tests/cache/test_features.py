"""Peers' feature files become caches with times in seconds."""

import io
import json
import tarfile

import numpy as np
import pytest

from unloc.annotations.schema import QueryRow, VideoRow, build_manifest
from unloc.cache.features import ImportConfig, import_features, list_features
from unloc.cache.opening import open_cache
from unloc.cache.writing import audit_cache
from unloc.errors import FingerprintError, InputError, MissingError

CLIPS = {"spacing_seconds": 2.0, "span_seconds": 2.0}


def features(length, seed=0, dim=6):
    return np.random.default_rng(seed).normal(size=(length, dim)).astype(np.float32)


def config(format_name, timing=CLIPS, **settings):
    return ImportConfig(format=format_name, origin="a test", **timing, **settings)


def manifest_of(durations):
    rows = [VideoRow(video_id, "test", duration) for video_id, duration in durations.items()]
    first = next(iter(durations))
    rows += [QueryRow(first, "test", "7", "a cat", [[0, 2]]), QueryRow(first, "test", "8", "a dog", [[0, 2]])]
    return build_manifest(name="m", tasks=["mr"], rows=rows)


def content_of(manifest):
    durations = dict(zip(manifest.videos["video_id"], manifest.videos["duration_seconds"], strict=True))
    return {
        "durations": durations,
        "queries": list(zip(manifest.queries["qid"], manifest.queries["text"], strict=True)),
    }


@pytest.fixture
def npz_folder(tmp_path):
    folder = tmp_path / "npz"
    folder.mkdir()
    for name, length in (("a", 5), ("b", 7)):
        np.savez(folder / f"{name}.npz", features=features(length, seed=length))
    return folder


def test_moment_detr_npz_with_texts_has_clip_centres_as_times(npz_folder, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    np.savez(texts / "qid7.npz", last_hidden_state=features(3, 1), pooler_output=np.zeros(6))
    np.savez(texts / "8.npz", last_hidden_state=features(4, 2)[None])
    manifest = manifest_of({"a": 10.0, "b": 14.2, "gone": 9.0})
    out = tmp_path / "cache"
    done = import_features(out, npz_folder, config("moment-detr"), **content_of(manifest), texts=texts)
    assert (done.videos, done.texts, done.missing, done.failures) == (2, 2, ["gone"], [])
    cache = open_cache(out)
    np.testing.assert_array_equal(cache["a"].frames[0], features(5, 5).astype(np.float16))
    assert cache["a"].times_seconds.tolist() == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert cache["b"].meta["duration_seconds"] == 14.2
    np.testing.assert_array_equal(cache.texts(["a dog"])[0], features(4, 2).astype(np.float16))
    with pytest.raises(MissingError, match="--texts"):
        cache.texts(["a bird"])
    assert cache.fingerprint["origin"] == "a test" and cache.fingerprint["timing.spacing_seconds"] == 2.0
    assert not audit_cache(out).damages
    again = import_features(out, npz_folder, config("moment-detr"), **content_of(manifest), texts=texts)
    assert (again.videos, again.cached_before, again.texts) == (0, 2, 0)


def test_actionformer_npy_is_timed_by_stride_window_and_frame_rate(tmp_path):
    folder = tmp_path / "i3d"
    folder.mkdir()
    np.save(folder / "v_x.npy", features(9).T[:, :, None, None])
    timing = {"spacing_seconds": 4 / 30, "span_seconds": 16 / 30}
    manifest = manifest_of({"x": (8 * 4 + 16) / 30})
    import_features(tmp_path / "c", folder, config("actionformer", timing, transposed=True), **content_of(manifest))
    cached = open_cache(tmp_path / "c")["x"]
    np.testing.assert_array_equal(cached.frames[0], features(9).astype(np.float16))
    np.testing.assert_allclose(cached.times_seconds, (np.arange(9) * 4 + 8) / 30, atol=1e-6)


def test_tokens_that_share_a_duration_evenly(tmp_path, npz_folder):
    out = tmp_path / "c"
    import_features(out, npz_folder, config("univtg", {}), **content_of(manifest_of({"a": 100.0, "b": 7.0})))
    assert open_cache(out)["a"].times_seconds.tolist() == [10.0, 30.0, 50.0, 70.0, 90.0]
    with pytest.raises(InputError, match=r"evenly.*duration"):
        import_features(tmp_path / "d", npz_folder, config("univtg", {}))


def test_clip_video_encode_tars_are_timed_by_their_frame_rate(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for suffix, data in (("npy", npy(features(4, number))), ("txt", b"caption"), ("json", b"{}")):
                member = tarfile.TarInfo(f"vid_{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    import_features(tmp_path / "c", folder, config("clip-video-encode", {"spacing_seconds": 0.5}, dtype="float32"))
    cache = open_cache(tmp_path / "c")
    assert list(cache.places) == ["vid_0", "vid_1"]
    np.testing.assert_array_equal(cache["vid_1"].frames[0], features(4, 1))
    assert cache["vid_1"].times_seconds.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert cache["vid_1"].meta["duration_seconds"] == 2.0


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("grouped", [False, True])
def test_hdf5_datasets_and_groups(tmp_path, grouped):
    h5py = pytest.importorskip("h5py", reason="h5py is an extra")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in ("a", "b"):
            file[f"{name}/c3d" if grouped else name] = features(5, ord(name))
        if grouped:
            file["b/other"] = features(5)
    source = config("hdf5", dataset="c3d" if grouped else None)
    import_features(tmp_path / "c", tmp_path / "f.h5", source)
    np.testing.assert_array_equal(open_cache(tmp_path / "c")["b"].frames[0], features(5, ord("b")).astype(np.float16))


def test_a_frame_rate_that_contradicts_the_durations_is_refused(tmp_path, npz_folder):
    wrong = {"spacing_seconds": 1.0, "span_seconds": 1.0}
    with pytest.raises(InputError, match=r"50%.*durations"):
        import_features(
            tmp_path / "c", npz_folder, config("univtg", wrong), **content_of(manifest_of({"a": 10, "b": 14}))
        )
    assert not (tmp_path / "c").exists()


def test_broken_files_are_failures_and_the_rest_is_there(tmp_path, npz_folder):
    (npz_folder / "broken.npz").write_bytes(b"PK no")
    (npz_folder / "cut.npz").write_bytes((npz_folder / "a.npz").read_bytes()[:-40])
    (npz_folder / "none.npz").write_bytes(b"")
    np.savez(npz_folder / "other.npz", features=features(5, dim=3))
    np.savez(npz_folder / "words.npz", features=np.array(["x", "y"]))
    np.savez(npz_folder / "large.npz", features=features(5) * 1e6)
    done = import_features(tmp_path / "c", npz_folder, config("univtg"))
    reasons = {row["video_id"]: row["reason"] for row in done.failures}
    assert reasons == {
        "broken": "unreadable",
        "cut": "unreadable",
        "none": "unreadable",
        "other": "not_features",
        "words": "not_features",
        "large": "does_not_fit",
    }
    assert sorted(open_cache(tmp_path / "c").places) == ["a", "b"]
    again = import_features(tmp_path / "c", npz_folder, config("univtg"))
    assert (again.videos, again.cached_before, len(again.failures)) == (
        0,
        2,
        len(reasons),
    )  # told again, not passed over
    np.savez(npz_folder / "broken.npz", features=features(5))
    mended = import_features(tmp_path / "c", npz_folder, config("univtg"))
    assert (mended.videos, len(mended.failures)) == (1, len(reasons) - 1)


def test_another_origin_or_timing_is_another_cache(tmp_path, npz_folder):
    import_features(tmp_path / "c", npz_folder, config("univtg"))
    with pytest.raises(FingerprintError, match="origin"):
        other = ImportConfig(format="univtg", origin="someone else", **CLIPS)
        import_features(tmp_path / "c", npz_folder, other)
    with pytest.raises(InputError, match="--origin"):
        ImportConfig(format="univtg", origin=" ", **CLIPS)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(MissingError, match="format univtg"):
        list_features("univtg", tmp_path)


def test_an_import_can_be_read_by_the_dataset(tmp_path, npz_folder):
    from unloc.config import DataConfig
    from unloc.examples.examples import Examples
    from unloc.examples.sources import CachedTokens

    texts = tmp_path / "t"
    texts.mkdir()
    for qid in ("7", "8"):
        np.savez(texts / f"{qid}.npz", last_hidden_state=features(3))
    manifest = manifest_of({"a": 10.0, "b": 14.0})
    import_features(tmp_path / "c", npz_folder, config("univtg"), **content_of(manifest), texts=texts)
    source = CachedTokens(open_cache(tmp_path / "c"))
    example = Examples("mr", manifest, source, DataConfig(num_steps=5)).example(0)
    assert example.frames.shape == (5, 6) and example.grid.start_seconds == 1.0
    assert json.dumps(open_cache(tmp_path / "c").fingerprint)


def test_what_stands_twice_or_in_no_plain_container_is_one_line(tmp_path, npz_folder):
    (npz_folder / "deep").mkdir()
    np.savez(npz_folder / "deep" / "a.npz", features=features(5))
    with pytest.raises(InputError, match=r"'a' is in .*deep/a\.npz"):
        list_features("univtg", npz_folder)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w:gz") as tar:
        tar.add(npz_folder / "a.npz", "a.npy")
    with pytest.raises(InputError, match="plain tar file") as raised:
        list_features("clip-video-encode", tmp_path / "tars")
    assert "\n" not in str(raised.value)


def test_an_hdf5_group_of_several_arrays_asks_which_one(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is an extra")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a"] = features(5)
        file["b/one"], file["b/two"] = features(5), features(5)
    done = import_features(tmp_path / "c", tmp_path / "f.h5", config("hdf5"))
    assert "one, two" in done.failures[0]["message"] and "--dataset" in done.failures[0]["message"]
