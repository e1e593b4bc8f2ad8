"""The HTML report of an evaluation: `data`, `figures` and the `page`.

Drawing needs the extra [report]; `data` alone does not.
"""
