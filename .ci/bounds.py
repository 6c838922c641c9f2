"""Print pip constraints for one end of the supported versions: `python .ci/bounds.py lowest | newest`.

"lowest" pins every dependency of users that has a lower bound in setup.py to the release series of that bound,
"newest" pins nothing.
"""

import re
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.py"


def lowest(setup: str) -> list[str]:
    """Return one constraint for each requirement with a lower bound, such as ``torch==2.11.*``."""
    users, tools, _ = setup.partition("DOCS = [")
    assert tools, "setup.py has no DOCS"
    pins = re.findall(r'"([\w.-]+)(?:\[\w+\])?>=([\d.]+)', users)
    return [f"{name}=={version}{'.*' if version.count('.') < 2 else ''}" for name, version in pins]


if __name__ == "__main__":
    if sys.argv[1:] == ["lowest"]:
        print("\n".join(lowest(SETUP.read_text(encoding="utf-8"))))
    elif sys.argv[1:] != ["newest"]:
        sys.exit("usage: python .ci/bounds.py lowest | newest")
