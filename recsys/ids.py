"""The item indices that are no items: padding and unknown.

Everything that models need to know of data.
"""

from __future__ import annotations

# Index 0 pads histories, index 1 stands for every item that the vocabulary
# does not hold, and real items start at 2, as in Keras's `StringLookup` with a
# mask token. Neither 0 nor 1 can be recommended.
PADDING_INDEX = 0
UNKNOWN_INDEX = 1
FIRST_ITEM_INDEX = 2
