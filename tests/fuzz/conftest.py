"""How many examples: few and always the same for a plain run of the tests; MINISL_FUZZ=full draws the full counts, each time
others.

MINISL_FUZZ=full python -m pytest tests/fuzz            minutes; a failure prints its example, made as small as it gets
"""

import pytest

pytest.importorskip("hypothesis")

from fuzz_checks import FULL
from hypothesis import HealthCheck, Phase, settings

shared = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}  # hangs: fuzz_checks.within
settings.register_profile("minisl-few", derandomize=True, report_multiple_bugs=False, phases=(Phase.explicit, Phase.generate),
                          **shared)
settings.register_profile("minisl-full", print_blob=True, **shared)
settings.load_profile("minisl-full" if FULL else "minisl-few")
