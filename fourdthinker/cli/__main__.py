import sys

from fourdthinker.cli import main

sys.exit(main())
