"""The text of a prediction file, whatever it is packed in."""

import gzip
import re
import zipfile
import zlib
from pathlib import Path

from unloc.errors import MissingError, PredictionError


def unpacked_text(path: Path, split: str | None) -> tuple[str, str]:
    """(content, how it was packed in words) of a file, plain, gzipped or in a zip.

    Of several files in a zip the one that names the split is read. Raises MissingError where the file is not there,
    PredictionError where it cannot be unpacked or is no text.
    """
    if path.is_dir():
        raise PredictionError(f"{path} is a folder; expected a file of predictions (folders go with --zero-shot)")
    if not path.is_file():
        raise MissingError(f"predictions {path} does not exist")
    content = path.read_bytes()
    packed = ""
    try:
        if zipfile.is_zipfile(path):
            name, content = _zip_member(path, split)
            packed = f" in a zip ({name})"
        elif content.startswith(b"\x1f\x8b"):
            content, packed = gzip.decompress(content), ", gzipped"
        return content.decode("utf-8-sig"), packed
    except UnicodeDecodeError as error:
        raise PredictionError(f"{path}: not text (byte {error.start} is not UTF-8); expected predictions") from None
    except (EOFError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error) as error:
        raise PredictionError(f"{path}: cannot be unpacked ({error}); is the file cut off?") from None
    except (RuntimeError, NotImplementedError) as error:  # what zipfile raises for a password or another compression
        raise PredictionError(f"{path}: cannot be unpacked ({error}); expected a plain zip") from None


def _zip_member(path: Path, split: str | None) -> tuple[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jsonl") and "__MACOSX" not in name]
        if len(names) > 1 and split:
            words = {name: re.split(r"[^a-z0-9]+", Path(name).stem.lower()) for name in names}
            names = [name for name in names if split.lower() in words[name]] or names
        if len(names) != 1:
            held = ", ".join(names) or "none"
            raise PredictionError(f"{path}: expected one .jsonl file, or one that names the split {split}; got {held}")
        return names[0], archive.read(names[0])
