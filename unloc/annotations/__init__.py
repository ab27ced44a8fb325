"""Annotations: the manifest schema, official formats, checks and repairs, class splits."""

import pandas as pd

# Otherwise pandas keeps strings in Arrow arrays where pyarrow is installed: other speed, other memory, and an error for
# half a surrogate pair, which JSON files do contain.
pd.set_option("mode.string_storage", "python")
