"""For all lanes."""

import gc
import os

# Clips of tests are gone before an index of theirs could be of use.
os.environ.setdefault("FOURDTHINKER_INDEX_CACHE", "off")
# No test loses power, and waiting for the disk takes a third of a tiny training.
os.fsync = lambda handle: None


def pytest_collection_finish() -> None:
    """What imports have made stays to the end: collections of garbage need not visit it."""
    gc.collect()
    gc.freeze()
