"""Names that the data modules and the command line must agree on.

Apart from what they choose, so that `--help` needs neither NumPy nor Arrow.
"""

from __future__ import annotations

# Which of several interactions of one user with one item stay.
REPEATS = ("first", "last", "all")
# The splits that look at one user at a time: how many of a user's last
# interactions they hold out at most.
HELD_OUT_BY_USER = {"leave_last_out": 2, "validation_only": 1}
