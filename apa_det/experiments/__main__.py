"""``python -m apa_det.experiments FOLDER`` trains one run, see :func:`train_run`."""

import sys

from .train_run import train_run

if __name__ == "__main__":
    train_run(sys.argv[1])
