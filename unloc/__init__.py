"""unloc: find when something happens in a video. Importing this module imports no torch."""

__version__ = "0.1.0"
