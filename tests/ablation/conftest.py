"""Its place puts this folder on the import path; the runs of tests/training are small enough for trials."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
