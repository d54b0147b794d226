"""
What the audit log says of each decision about a request: who asked, for what, what became of it.

Events: ``allowed``, ``passed over`` (it is for this node, which has no room and was not named),
``rejected``, ``started``, ``ended``. What is for other nodes is no decision, nor is what only
looks: `agent.ping` and the like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .audit import AuditLog
from .dispatch import Admission, Task
from .errors import AuditError, MessageError
from .interfaces import Delivery
from .jobs import Run
from .masking import Mask
from .messages import Request, encode

LONGEST = 1000  # characters of what a client or a program has named
ARGUMENTS = 4096  # bytes of a request's arguments that are written down
LOOKING = frozenset(("agent.ping", "agent.tasks", "agent.match", "agent.jobs"))
NOTHING = Mask()
HIDDEN = "***"  # where the task's file says that parts must not get out, and it was not run


class Decisions:
    """Writes them down.

    Args:
        log: Where; None for nowhere.
    """

    def __init__(self, log: AuditLog | None = None) -> None:
        self._log = log

    def allowed(
        self, request: Request, delivery: Delivery, backend: str, admission: Admission
    ) -> str:
        """It is accepted; why it must not run all the same, or nothing."""
        task = admission.task
        if self._log is None:
            return "not run, for there is no audit log" if task.audit_required else ""
        hidden = task.masks_data and bool(admission.fault)  # then nobody has looked for secrets
        arguments = HIDDEN if hidden else _short(request.plain(), Mask(admission.secrets))
        fields = _about(request, delivery, backend) | {"arguments": arguments}
        if admission.fault:
            fields["fault"] = admission.fault[:LONGEST]
        return self._write("allowed", request.task, fields, task)

    def refused(
        self, event: str, request: Request, delivery: Delivery, backend: str,
        reason: str, task: Task | None,
    ) -> None:  # fmt: skip
        """It is rejected, or passed over for lack of room."""
        if self._log is None:
            return
        fields = _about(request, delivery, backend) | {"reason": reason[:LONGEST]}
        if task is not None:
            fields["arguments"] = HIDDEN if task.masks_data else _short(request.plain())
        self._write(event, request.task, fields)

    def started(self, run: Run) -> str:
        """Its job begins; why it must not, or nothing."""
        return self._write("started", run.job.task, _run(run), run.task)

    def ended(self, run: Run, ending: str) -> None:
        """Its job is over."""
        fields = {**_run(run), "outcome": ending, "reason": run.reason[:LONGEST]}
        self._write("ended", run.job.task, fields)

    def left(self, src: str, uuid: str, task: str, reason: str) -> None:
        """What an earlier run of the agent had begun is answered."""
        self._write("ended", task, {"src": src, "uuid": uuid, "outcome": "error", "reason": reason})

    def _write(
        self, event: str, name: str, fields: Mapping[str, Any], task: Task | None = None
    ) -> str:
        if self._log is None or name in LOOKING:
            return ""
        try:
            self._log.write(event, {"task": name[:LONGEST], **fields})
        except AuditError as exc:
            if task is not None and task.audit_required:
                return f"not run, for it cannot be audited: {exc}"
        return ""


def _about(request: Request, delivery: Delivery, backend: str) -> dict[str, Any]:
    fields = {
        "uuid": _name(request.uuid), "src": _name(request.src), "dst": str(request.dst)[:LONGEST],
        "backend": backend, "channel": delivery.control_channel, "caller": delivery.caller,
        "attempt": delivery.claim.attempt if delivery.claim is not None else 0,
    }  # fmt: skip
    return {key: value for key, value in fields.items() if value}


def _run(run: Run) -> dict[str, Any]:
    return {"uuid": _name(run.job.uuid), "src": _name(run.job.src), "attempt": run.job.attempt}


def _name(text: str) -> str:
    return text[:LONGEST].encode("utf-8", "backslashreplace").decode()


def _short(arguments: Any, mask: Mask = NOTHING) -> Any:
    """*arguments* without secrets, or what tells them from others if they are too long."""
    try:
        arguments = mask.value(arguments) if mask else arguments
        text = encode(arguments)
    except MessageError:  # nested too deeply
        return HIDDEN
    if len(text) <= ARGUMENTS:
        return arguments
    return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
