"""`python -m rapidfireai` is the command `rapidfireai`."""

import sys

from rapidfireai.cli import main

sys.exit(main())
