"""What can go wrong between a client and the API."""

from typing import Any

from branchd.core.errors import BranchdError, Fault


class Unreachable(BranchdError):
    """No whole answer came; what was asked may have been done or not.

    `denied`: the socket is there, and the operating system does not let this user open it.
    """

    def __init__(self, url: str, reason: str, *, denied: bool = False) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason
        self.denied = denied


class ApiProblem(BranchdError):
    """The API said no (RFC 9457): status, type, title, detail, and every field that is wrong."""

    def __init__(
        self, status: int, type: str, title: str, detail: str, errors: tuple[Fault, ...] = (), hint: str = ""
    ) -> None:
        super().__init__(detail or title, hint)
        self.status = status
        self.type = type
        self.title = title
        self.errors = errors

    @classmethod
    def of(cls, status: int, document: Any) -> "ApiProblem":
        """From the problem document; an answer that is none, from a proxy perhaps, is told by its status."""
        if not isinstance(document, dict):
            return cls(status, "about:blank", f"status {status}", f"the answer was {status} without an explanation")
        errors = tuple(
            Fault(str(item.get("pointer", "")), str(item.get("detail", "")), str(item.get("hint", "")))
            for item in document.get("errors", ())
        )
        title = str(document.get("title", f"status {status}"))
        kind, detail, hint = (str(document.get(name, "")) for name in ("type", "detail", "hint"))
        return cls(status, kind or "about:blank", title, detail, errors, hint)
