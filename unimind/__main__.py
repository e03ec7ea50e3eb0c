"""`python -m unimind <stage>`."""

import sys

from unimind.cli import main

sys.exit(main())
