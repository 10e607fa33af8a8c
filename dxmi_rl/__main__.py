"""``dxmi-rl`` and ``python -m dxmi_rl``: the command line, or one line that names the extra it lacks."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; exit status 2 where its extra is not installed."""
    try:
        from dxmi_rl.cli import main as run
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
