"""A self-contained page: the shell `page.html` with a title and a JSON document, which its script draws.

It asks nothing of anyone: the policy allows its own script and style by hash, images in it, and video files next to it.
"""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path

SHELL = Path(__file__).with_name("page.html")
_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render(content: dict) -> str:
    """The page of a document with a `title`; numbers that are not finite become null."""
    shell = SHELL.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", shell, re.DOTALL)[1]
        hashes[tag] = f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src data:; "
        "media-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    data = json.dumps(finite, ensure_ascii=False, separators=(",", ":")).translate(_IN_SCRIPT)
    parts = {"policy": policy, "title": escape(str(content["title"])), "data": data}
    return re.sub(r"\{\{(policy|title|data)\}\}", lambda found: parts[found[1]], shell)
