"""A tree on disk or in an object store. Read `tables`, `rows`, `catalog`, `snapshot`, `writing`, `maintenance`.

Everything here raises `StorageError` where the system refuses or another writer was first, and `DataError` where stored
rows or files are damaged. Docstrings name only what is raised besides.
"""

from gistnet.extras import needing

with needing("tree", "A tree on disk"):
    import lance  # noqa: F401
    import pyarrow  # noqa: F401
