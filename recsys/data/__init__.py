"""From a log of interactions to what a model trains on.

`sources` reads a log, `interactions` holds its columns, `vocabulary` turns
raw item ids into indices. Nothing is imported eagerly here.
"""
