"""``python -m dxmi_rl``, which is ``dxmi-rl``."""

import sys

from dxmi_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
