"""``python -m apa_det.experiments FOLDER [MODULE ...]`` trains one run, see :func:`train_run`."""

import sys

from .training import train_run

if __name__ == "__main__":
    train_run(sys.argv[1], sys.argv[2:])
