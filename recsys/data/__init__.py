"""From a log of interactions to what a model trains on.

`sources` reads a log, `interactions` holds its columns, `vocabulary` turns raw
item ids into indices. Modules are imported when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    path = f"recsys.data.{name}"
    if name.startswith("_") or importlib.util.find_spec(path) is None:
        raise AttributeError(f"module 'recsys.data' has no attribute {name!r}")
    return importlib.import_module(path)
