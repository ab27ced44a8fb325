"""A page in headless Chromium, driven by its debugging protocol over a pipe: no further package is needed."""

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest


class Page:
    """An open page, and everything it asked for or complained about."""

    def __init__(self, process, reads, writes):
        self.process, self.reads, self.writes = process, reads, writes
        self.number, self.rest, self.session = 0, b"", None
        self.requests, self.complaints = [], []

    def message(self):
        while b"\0" not in self.rest:
            part = os.read(self.reads, 1 << 16)
            assert part, "chromium has ended"
            self.rest += part
        line, self.rest = self.rest.split(b"\0", 1)
        found = json.loads(line)
        if found.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["params"]["request"]["url"])
        if found.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(found["params"]))
        return found

    def call(self, method, **params):
        self.number += 1
        request = {"id": self.number, "method": method, "params": params}
        request |= {"sessionId": self.session} if self.session else {}
        os.write(self.writes, json.dumps(request).encode() + b"\0")
        while (found := self.message()).get("id") != self.number:
            pass
        assert "error" not in found, found
        return found["result"]

    def open(self, url, width, height):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def js(self, expression):
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression, seconds=20):
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def press(self, key):
        text = key if len(key) == 1 else ""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")


@contextmanager
def chromium_page(path, profile, width=1280, height=900):
    """The file or URL as an open page; the test is skipped where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    ours, theirs = os.pipe(), os.pipe()  # what we read, what we write
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    options += ["--disable-background-networking", "--no-first-run", "about:blank"]

    def as_3_and_4():
        reading, writing = os.dup(theirs[0]), os.dup(ours[1])
        os.dup2(reading, 3)
        os.dup2(writing, 4)

    process = subprocess.Popen(
        [program, *options],
        preexec_fn=as_3_and_4,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(ours[1])
    os.close(theirs[0])
    page = Page(process, ours[0], theirs[1])
    try:
        page.open(path if isinstance(path, str) else path.resolve().as_uri(), width, height)
        yield page
    finally:
        process.terminate()
        process.wait(20)
        os.close(ours[0])
        os.close(theirs[1])
