"""`python -m charlm` is the command `charlm`."""

import sys

from charlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
