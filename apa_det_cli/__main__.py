"""``python -m apa_det_cli`` is ``apa-det``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
