"""Compare agents on tasks over seeds; the same as ``dxmi-rl compare``, which documents its results and their keys."""

import sys

from dxmi_rl.benchmark.compare import main

if __name__ == "__main__":
    sys.exit(main())
