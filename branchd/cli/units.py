"""The text of our systemd units: the files of deploy/ are what stands here for /usr/bin/branchd.

Nothing is installed, and systemd is not asked. What the units' commands do stands in adapters/service_manager.py.
"""

from enum import StrEnum

from branchd.core.value import Value


class Profile(StrEnum):
    SYSTEM = "system"  #: root, so that it can run each program as the user that its app names
    SINGLE_USER = "single-user"  #: an account of its own for the daemon and all that it runs
    USER = "user"  #: of somebody's own service manager: systemctl --user


class Commands(Value):
    """Command lines without arguments."""

    branchd: str = "/usr/bin/branchd"
    branchctl: str = "/usr/bin/branchctl"  #: with what leads it to the daemon
    run: str = ""  #: further arguments of `branchd run`


_TITLE = {
    Profile.SYSTEM: """\
# The system profile: the daemon is root, so that it can run each program as the user that its app names.""",
    Profile.SINGLE_USER: """\
# The single-user profile: the daemon and all that it runs are one account, which can become no other and may write to
# nothing but its own folders. Add ReadWritePaths= for what programs write elsewhere.""",
    Profile.USER: """\
# For a user's own service manager: systemctl --user. `loginctl enable-linger` keeps it up while nobody is there.""",
}

_UNIT = """\
{title}
# As `branchd systemd-unit --profile {profile}` prints it.
[Unit]
Description=branchd, supervisor of Celery workers and other programs
{network}# Wanted and not required: without its socket the daemon opens one itself.
Wants=branchd.socket
After=branchd.socket
# A daemon that cannot start is tried again for as long as it takes: nobody else supervises what runs here.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{account}ExecStart={branchd} run{run}
# New code and configuration, tried first and then taken up in place: pid, workers and connections stay.
ExecReload={branchctl} reload --wait
# On `systemctl restart` it has the daemon go without what it runs, which the next one adopts. On a stop it does
# nothing, and the TERM that follows runs the stop plans.
ExecStop=-{branchd} systemd-stop{scope} %n
# A controller that is on in our cgroup keeps systemd before 254 from starting anything in it (219/CGROUP).
ExecStopPost=-{branchd} systemd-clean

# What runs outlives a crash of the daemon and is adopted by the next one. `systemctl stop` ends it by the stop plans of
# the instances, which alone say how long that may take; a shutdown that was asked for exits 0 and stays down.
KillMode=process
SendSIGKILL=no
TimeoutStopSec=infinity
Restart=on-failure
RestartSec=500ms
OOMPolicy=continue

# A daemon that hangs is killed at once: after any other signal nothing would follow, for SendSIGKILL is off.
WatchdogSec=30s
WatchdogSignal=SIGKILL
TimeoutStartSec=60s

# A control group of its own below ours for each instance.
Delegate=yes
TasksMax=infinity
LimitNOFILE={files}
{oom}
StateDirectory=branchd
StateDirectoryMode=0700
RuntimeDirectory=branchd
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
LogsDirectory=branchd
ConfigurationDirectory=branchd
{folders}UMask=0027
{walls}
[Install]
WantedBy={target}
"""

_NETWORK = """\
Wants=network-online.target
After=network-online.target
"""

_OOM = """\
# The last one to be killed when memory runs out; instances start from 0 again.
OOMScoreAdjust=-900
"""

_FOLDERS = """\
# The folders above, whatever account it is. They beat the keys of the same names in the configuration.
Environment=BRANCHD_STATE=%S/branchd BRANCHD_RUN=%t/branchd BRANCHD_LOGS=%L/branchd
"""

_WALLS = """
# All of this holds for the instances too. Deliberately absent, because survivors of a restart would keep the old one or
# the instances need it: PrivateTmp, DynamicUser{more}.
{system}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
{rest}
"""

_ROOT = """\
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_SYS_RESOURCE
CapabilityBoundingSet=CAP_SYS_NICE CAP_NET_BIND_SERVICE CAP_SYS_PTRACE"""

_ONE = """\
CapabilityBoundingSet=
NoNewPrivileges=yes
PrivateDevices=yes
ProtectControlGroups=no
ProtectHome=read-only
ProtectProc=invisible
ReadWritePaths=-/tmp -/var/tmp
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM"""

_SOCKET = """\
# The API's socket, which stays while the daemon is restarted: who connects meanwhile waits, and is answered.
# As `branchd systemd-unit --socket` prints it.
[Unit]
Description=branchd, the socket of its API
# It goes with `systemctl stop branchd`, or the next one who connects would start the daemon again; a restart leaves it.
StopPropagatedFrom=branchd.service

[Socket]
ListenStream=%t/branchd/api.sock
FileDescriptorName=api
{access}Backlog=1024

[Install]
WantedBy=sockets.target
"""


def service(profile: Profile, commands: Commands, account: str | None = None) -> str:
    """branchd.service. `account`: of the single-user profile."""
    walls = {
        Profile.SYSTEM: _WALLS.format(
            more=", NoNewPrivileges, ProtectHome, PrivateDevices", system="ProtectSystem=full", rest=_ROOT
        ),
        Profile.SINGLE_USER: _WALLS.format(more="", system="ProtectSystem=strict", rest=_ONE),
        Profile.USER: "",
    }
    of_user = profile is Profile.USER
    return _UNIT.format(
        title=_TITLE[profile],
        profile=profile,
        network="" if of_user else _NETWORK,
        account=f"User={account}\nGroup={account}\n" if account else "",
        branchd=commands.branchd,
        branchctl=commands.branchctl,
        run=commands.run,
        scope=" --user" if of_user else "",
        files="infinity" if of_user else "65536",
        oom="" if of_user else _OOM,
        folders="" if profile is Profile.SYSTEM else _FOLDERS,
        walls=walls[profile],
        target="default.target" if of_user else "multi-user.target",
    )


def api_socket(profile: Profile, account: str | None = None) -> str:
    """branchd.socket, which goes with it. `account`: of the single-user profile."""
    access = {
        Profile.SYSTEM: "SocketMode=0660\nSocketGroup=branchd\n",
        Profile.SINGLE_USER: f"SocketMode=0660\nSocketUser={account}\nSocketGroup={account}\n",
        Profile.USER: "SocketMode=0600\n",
    }
    return _SOCKET.format(access=access[profile])
