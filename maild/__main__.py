"""`python -m maild` is `maild`."""

import sys

from maild.cli import main

sys.exit(main())
