import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="module", autouse=True)  # a module may end with another number of threads than it began with
def one_thread():
    """Arrays here are tiny: threads of NumPy and PyTorch would only wait for each other."""
    with threadpool_limits(1):
        yield
