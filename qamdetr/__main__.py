"""`python -m qamdetr`."""

import sys

from qamdetr.cli import main

if __name__ == "__main__":
    sys.exit(main())
