"""The old name of `python -m recipe.pareto`, kept for one release."""

import sys

from recipe.errors import end
from recipe.pareto import main

if __name__ == "__main__":
    print("benchmarks.pareto is now recipe.pareto; the old name goes with the next release", file=sys.stderr)
    end(main)
