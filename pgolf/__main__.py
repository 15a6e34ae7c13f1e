"""`python -m pgolf`, also under torchrun."""

import os

from pgolf.app.cli import main
from pgolf.app.machine import leave

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if "RANK" not in os.environ or not isinstance(end.code, int):
            raise
        leave(end.code)
