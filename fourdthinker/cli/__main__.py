"""`python -m fourdthinker.cli` is the command `fourdthinker`."""

import sys

from fourdthinker.cli import main

sys.exit(main())
