"""Objects below one URL (`s3://bucket/cache`), through fsspec, with retries and checks of what was sent."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from unloc.errors import CacheError, InputError, MissingError, one_line
from unloc.files import file_crc32c

logger = logging.getLogger(__name__)
ATTEMPTS, PAUSE_SECONDS = 7, 0.1  # pauses double: about six seconds in all


class ObjectStore:
    """The objects below a URL, by their name relative to it."""

    def __init__(self, url: str) -> None:
        """Raises InputError where there is no such kind of store, or what it needs is not installed."""
        self.url = url
        try:
            self.store, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            hint = "; it needs: pip install 'unloc[s3]'" if url.startswith("s3:") else ""
            raise InputError(f"{url}: {one_line(error)}{hint}") from None
        self.root = root.rstrip("/")

    def infos(self) -> dict[str, dict]:
        """Every object with what the store reports about it."""
        found, start = {}, f"{self.root.lstrip('/')}/"
        with suppress(FileNotFoundError):
            found = self._try(lambda: self.store.find(self.root, detail=True), "")
        named = ((key.lstrip("/"), info) for key, info in found.items())
        return {key.removeprefix(start): info for key, info in named if key.startswith(start)}

    def info(self, name: str) -> dict:
        """What the store reports about an object now. Raises FileNotFoundError where it is not there."""
        return self._try(lambda: self.store.info(f"{self.root}/{name}"), name)

    def read(self, name: str) -> bytes:
        """The bytes of an object. Raises FileNotFoundError where it is not there."""
        return self._try(lambda: self.store.cat_file(f"{self.root}/{name}"), name)

    def download(self, name: str, file: Path, size: int | None, checksum: str | None = None, **options: Any) -> None:
        """An object over a file. Raises FileNotFoundError where it is not there; `options`: of fsspec's `get_file`."""

        def get() -> None:
            self.store.get_file(f"{self.root}/{name}", str(file), **options)
            if size not in (None, file.stat().st_size):
                raise OSError(f"received {file.stat().st_size} of its {size} bytes")
            if checksum not in (None, file_crc32c(file)):
                raise OSError("its checksum is not the one in its table; run `unloc cache verify`")

        self._try(get, name)

    def fetch(self, name: str, target: Path, checksum: str | None = None) -> None:
        """An object into a file, which appears whole. Raises CacheError where its crc32c is another."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")  # several readers may fetch one object
        self.download(name, part, None, checksum)
        part.replace(target)

    def send(self, file: Path, name: str) -> None:
        """A file as an object."""

        def put() -> None:
            """Send it, and compare its size there."""
            try:
                self.store.put_file(str(file), f"{self.root}/{name}")
                self.store.invalidate_cache()
                size = self.store.info(f"{self.root}/{name}")["size"]
            except FileNotFoundError as error:
                raise OSError(f"not found after it was sent ({one_line(error)})") from None
            if size != file.stat().st_size:
                raise OSError(f"has {size} bytes after {file.stat().st_size} were sent")

        self._try(put, name)

    def create(self, name: str, content: dict) -> dict:
        """Write a JSON object where there is none; what is there now. Raises MissingError where there is no bucket."""
        raw = json.dumps(content).encode()
        try:
            self._try(lambda: self.store.pipe_file(f"{self.root}/{name}", raw, mode="create"), name)
        except FileExistsError:  # or this one: a first attempt may have arrived though it was reported as failed
            with suppress(FileNotFoundError, ValueError):
                return json.loads(self.read(name))
            return {}
        except FileNotFoundError as error:
            raise MissingError(f"{self.url}: there is no such bucket ({one_line(error)}); make it first") from None
        return content

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError):
            self._try(lambda: self.store.rm_file(f"{self.root}/{name}"), name)

    def _try(self, action: Callable[[], Any], name: str) -> Any:
        """The result of an action, repeated while the store fails. Raises CacheError after the last attempt."""
        temporary, final = [OSError], [PermissionError]
        with suppress(ImportError):  # clients of S3 and of the web have classes of their own
            from botocore import exceptions as s3

            temporary += [s3.BotoCoreError, s3.ClientError]
            final += [s3.NoCredentialsError, s3.PartialCredentialsError]
        with suppress(ImportError):
            import aiohttp

            temporary.append(aiohttp.ClientError)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                self.store.invalidate_cache()
                return action()
            except (FileNotFoundError, FileExistsError):
                raise
            except tuple(final) as error:
                raise CacheError(f"{self.url}/{name}: not allowed ({one_line(error)}); check credentials") from None
            except tuple(temporary) as error:
                message = one_line(error)
                logger.info("%s/%s: %s (attempt %d)", self.url, name, message, attempt + 1)
        raise CacheError(f"{self.url}/{name}: failed {ATTEMPTS} times ({message}); run the same command again")
