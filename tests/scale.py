"""The size knob of long test campaigns: small by default, everything with KOGPT_TEST_SCALE=full."""

import os


def scaled(small: int, full: int) -> int:
    """Number of cases a campaign runs."""
    return full if os.environ.get("KOGPT_TEST_SCALE") == "full" else small
