"""unloc: find when something happens in a video.

    import unloc
    cache = unloc.open_cache("cache/charades")     # cache["3MSZA"].frames (views, T, D), .times_seconds (T,), .meta
    model = unloc.load("runs/charades_b")          # knows its tower, preprocessing and sampling; or "owner/name"
    model.predict("video.mp4", ["a person opens a door"])     # moments: start and end in seconds, score, text
    unloc.load_model("runs/charades_b")            # .model: the network, .info: recipe, classes, fingerprint

Importing this module imports no torch: names are loaded when they are asked for.
"""

from importlib import import_module

__version__ = "0.1.0"
_NAMES = {
    "open_cache": "unloc.cache.opening",
    "load": "unloc.inference.video_model",
    "load_model": "unloc.inference.load",
    "evaluation": "unloc.evaluation",
}


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module 'unloc' has no attribute {name!r}")
    module = import_module(_NAMES[name])
    return module if _NAMES[name] == f"unloc.{name}" else getattr(module, name)
