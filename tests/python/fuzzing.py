"""How property tests run: the same examples each time in `make test`, others and more of them by HBN_FUZZ_EXAMPLES."""

import os

from hypothesis import HealthCheck, settings

bounded = settings(
    max_examples=int(os.environ.get("HBN_FUZZ_EXAMPLES", 300)),
    deadline=None,
    derandomize="HBN_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
