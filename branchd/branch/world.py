"""What every part of the daemon is given: the ports, the clocks and chance. Put together once, by the cli room."""

from collections.abc import Callable, Mapping

from msgspec import field

from branchd.branch.ports import Channel, Driver, Host, LogFiles, Prober, Processes, Store, Teller
from branchd.core.access import Scope
from branchd.core.admission import Guards
from branchd.core.spec import Kind
from branchd.core.value import Value


class World(Value):
    processes: Processes
    logs: LogFiles
    store: Store
    channel: Channel
    host: Host
    prober: Prober
    teller: Teller
    drivers: Mapping[Kind, Driver]
    clock: Callable[[], float]  #: seconds since boot, the same for every process of the machine
    wall: Callable[[], float]  #: seconds since 1970
    chance: Callable[[], float]  #: uniform in [0, 1)


class Policies(Value):
    """What the branch's own configuration says about its instances."""

    name: str  #: of the branch
    labels: Mapping[str, str]
    slots: int | None  #: None: by the number of CPUs
    node_name: str  #: template with {app}, {name}, {branch}
    default_user: str | None
    allow_users: tuple[str, ...] | None  #: None: no list, every account
    peer_scope: Scope = Scope.OPERATE  #: the most that other branches may do here
    guards: Guards = field(default_factory=Guards)
