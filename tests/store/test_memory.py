"""The store in memory keeps the contract."""

import pytest

from rapidfireai.store import MemoryStore, Store
from rapidfireai.testing.stores import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()
