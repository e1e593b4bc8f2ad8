"""Names that the data modules and the command line must agree on.

Apart from what they choose, so that `--help` needs neither NumPy nor Arrow.
"""

from __future__ import annotations

# Which of several interactions of one user with one item stay.
REPEATS = ("first", "last", "all")
