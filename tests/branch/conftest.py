import pytest

from branchd.core.access import Principal, Scope
from tests.api.conftest import House

ADMIN = Principal("test", Scope.ADMIN)


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
async def service(house):
    service = house.service()
    await service.begin()
    await service.apps.put("web", {"kind": "command", "command": ["serve"]})
    yield service
    service.close()
