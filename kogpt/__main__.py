"""`python -m kogpt` is `kogpt`."""

import sys

from kogpt.cli import main

sys.exit(main())
