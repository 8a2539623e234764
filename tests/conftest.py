"""For all lanes."""

import os

# Clips of tests are gone before an index of theirs could be of use.
os.environ.setdefault("FOURDTHINKER_INDEX_CACHE", "off")
