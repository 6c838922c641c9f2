"""200 kills at random moments lose nothing; see soak.py."""

import pytest
import soak


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_two_hundred_kills_lose_nothing(tmp_path):
    counts = soak.run(tmp_path, kills=200)
    assert sum(count for name, count in counts.items() if "SIG" in name) >= 200
