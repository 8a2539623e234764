from tests.poison import poisoned_memory  # noqa: F401
