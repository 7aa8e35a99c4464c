"""An asyncio client of branchd's HTTP API, for branchctl and for your programs.

client = BranchdClient("unix:/run/branchd/api.sock")
await client.create_instance("shop", {"name": "mail-1", "queues": ["mail"]}, wait=30)
"""

from branchd.client.asking import Object
from branchd.client.client import BranchdClient
from branchd.client.errors import ApiProblem, Unreachable

__all__ = ["ApiProblem", "BranchdClient", "Object", "Unreachable"]
