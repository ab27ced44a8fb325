"""Manifests on disk: what cannot be read names file and line."""

import pytest

from unloc.data.schema import load_manifest
from unloc.errors import ManifestError, MissingError


def test_broken_manifests_name_file_and_line(tmp_path):
    path = tmp_path / "m.jsonl"
    with pytest.raises(MissingError, match="does not exist"):
        load_manifest(path)
    path.write_text("")
    with pytest.raises(ManifestError, match="is empty"):
        load_manifest(path)
    path.write_text('{"kind": "manifest", "version": 1, "name": "x", "tasks": ["mr"]}\n{"kind": "video"}\n')
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: row of kind 'video' lacks duration_seconds, split, video_id"):
        load_manifest(path)
    path.write_text('{"kind": "manifest", "version": 1, "name": "x", "tasks": ["mr"]}\n')
    with pytest.raises(ManifestError, match="describes no video"):
        load_manifest(path)
