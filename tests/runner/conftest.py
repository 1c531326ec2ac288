from tests.engine.conftest import llama  # noqa: F401 (a fixture)
