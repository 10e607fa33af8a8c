"""Compare agents on tasks over seeds; the same as ``dxmi-rl compare``, which documents its results and their keys."""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from dxmi_rl.benchmark.compare import main

if __name__ == "__main__":
    sys.exit(main())
