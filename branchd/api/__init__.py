"""HTTP, a face of the daemon.

aiohttp brings its client along, which the daemon has no use for; as it is imported it reads the certificates of all
authorities, where the machine has them in one file: 30 to 90 ms of a start. It is told of another place meanwhile.
"""

import os

_told = os.environ.get("SSL_CERT_FILE")
os.environ["SSL_CERT_FILE"] = os.devnull
try:
    import aiohttp  # noqa: F401
finally:
    if _told is None:
        del os.environ["SSL_CERT_FILE"]
    else:
        os.environ["SSL_CERT_FILE"] = _told
