"""`python -m recsys.serve`: answers over HTTP, and shows a page to try it."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from recsys.command_line import (
    Command,
    add_model_flag,
    load_tensorflow,
    model_folder,
)
from recsys.errors import InputError, need_packages

if TYPE_CHECKING:
    from recsys.serving.live import Folder

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "rapidfuzz")

COMMAND = Command(
    "recsys.serve",
    "Serves a trained model, or an export of one, over HTTP: the interface of "
    "TensorFlow Serving, JSON, and a page at / to try it in a browser. A new "
    "model in the folder replaces the old one without a failed request.",
    [
        "python -m recsys.serve --workdir=runs/movielens-small",
        "python -m recsys.serve --workdir=runs/mine --compare=runs/other",
        "python -m recsys.serve --workdir=exports/mine --host=0.0.0.0 \\\n"
        "      --token_file=token.txt --users=false",
    ],
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    pathlib.Path,
    "compare",
    "Folder of another model, to see side by side.",
    group="Model",
)
COMMAND.add_flag(
    bool,
    "users",
    "Whether to show users of the log, with their histories.",
    group="Model",
    default=True,
)
COMMAND.add_flag(
    float,
    "poll_seconds",
    "How often to look for a new model.",
    group="Model",
    default=2.0,
)
COMMAND.add_flag(
    str, "host", "The address.", group="Network", default="127.0.0.1"
)
COMMAND.add_flag(
    int, "port", "The port; 0 for a free one.", group="Network", default=8501
)
COMMAND.add_flag(
    pathlib.Path,
    "token_file",
    "A file with a token, which requests must carry as a bearer token.",
    group="Network",
)
COMMAND.add_flag(
    list,
    "allow_origin",
    "Another origin, such as https://example.com, whose pages may use the "
    "service (CORS); repeatable.",
    group="Network",
)
COMMAND.add_flag(
    bool,
    "access_log",
    "Whether to print a line per request.",
    group="Network",
    default=True,
)
for name, help_text, default in (
    ("max_body_kb", "Maximum size of a request's body in kilobytes.", 1024),
    ("max_history", "Maximum number of items in a history or list.", 1000),
    ("max_k", "Maximum number of items in an answer.", 500),
    ("max_seconds", "Maximum number of seconds to answer a request.", 10),
):
    COMMAND.add_flag(int, name, help_text, group="Limits", default=default)


def main(values: dict[str, Any]) -> int:
    """Serves until it is stopped.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    paths = [model_folder(values)]
    if values["compare"]:
        paths.append(pathlib.Path(values["compare"]))
    token = _check(values)
    # Products of one row are slower on several cores, by far on busy ones.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    load_tensorflow()
    # Imports TensorFlow, and packages of the extra.
    from recsys.serving import http, live

    with _bind(values["host"], values["port"]) as listening:
        metrics = http.Metrics(folders := {})
        for path in paths:
            name = path.resolve().name
            name += "-2" * (name in folders)
            folders[name] = live.Folder(path, name, metrics.batch.observe)
        app = http.make_app(
            folders,
            http.Limits(
                body=values["max_body_kb"] * 1024,
                history=values["max_history"],
                k=values["max_k"],
                seconds=values["max_seconds"],
            ),
            token=token,
            origins=values["allow_origin"] or [],
            has_users=values["users"],
            log=_print_line if values["access_log"] else None,
            metrics=metrics,
        )
        polling = (list(folders.values()), values["poll_seconds"])
        threading.Thread(target=_poll, args=polling, daemon=True).start()
        host, port = listening.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        print(f"{', '.join(folders)}: http://{host}:{port}/", flush=True)
        # Uvicorn answers what it has begun, then raises the signal again.
        signal.signal(signal.SIGTERM, lambda *_: None)
        http.run(app, listening, values["max_seconds"])
    return 0


def _poll(folders: list[Folder], seconds: float) -> None:
    while True:
        time.sleep(seconds)
        for folder in folders:
            folder.poll()


def _check(values: dict[str, Any]) -> str | None:
    """Checks the flags before the slow part; returns the token."""
    need_packages("recsys.serve", "serve", *_PACKAGES)
    for name in (
        "max_body_kb",
        "max_history",
        "max_k",
        "max_seconds",
        "poll_seconds",
    ):
        if not values[name] > 0:
            raise InputError(
                f"--{name} must be positive. Received: {values[name]}"
            )
    if not 0 <= values["port"] < 2**16:
        raise InputError(
            f"--port must be from 0 to 65535. Received: {values['port']}"
        )
    if not values["token_file"]:
        return None
    path = pathlib.Path(values["token_file"])
    token = path.read_text("utf-8").strip() if path.is_file() else ""
    if not token or not token.isascii() or " " in token:
        raise InputError(
            "--token_file must be a file with a token, of ASCII without "
            f"blanks. Received: {path}"
        )
    return token


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            "--host and --port must be an address of this machine and a free "
            f"port. Received: {host}:{port} ({error})"
        ) from error
    # asyncio does it for sockets of its own. Without, the second packet of an
    # answer waits for the client's delayed acknowledgment of the first: 40 ms.
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
