"""A quick check whether a Ray cluster answers at an address: Ray itself takes minutes."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

from experiments.config.precision import ConfigError

KEY = "hydra.launcher.address"
_PATIENCE_SECONDS = 30.0
"""Seconds for a cluster to answer: it may have been started a moment ago."""
_ONE_SECONDS = 5.0
"""Seconds of these for one attempt."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The first bytes of a client of HTTP/2, which Ray speaks: the preface and empty settings."""
_FRAME_BYTES, _TYPE_BYTE, _SETTINGS = 9, 3, 4
"""The beginning of a server's answer: a frame of settings, whose head is nine bytes."""


def wait_for_cluster(ray: Any, address: str, patience: float = _PATIENCE_SECONDS) -> None:
    """Wait a short time, and say so, until a cluster answers.

    Raises:
        ConfigError: None does; gives the address and the reason.
    """
    target = ray._private.services.get_ray_address_from_environment(address, None)
    host, port = _parsed(address, target)
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            _greet(host, port, min(_ONE_SECONDS, patience / 4))
            return
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            final = isinstance(error, socket.gaierror)
        left = deadline - time.monotonic()
        if final or left <= 0:
            raise ConfigError(
                f"{KEY}={address}: no Ray cluster answers at {host}:{port} ({why}); start one with "
                "`ray start --head`, or see docs/clusters.md"
            )
        if not told:
            told = True
            sys.stderr.write(
                f"waiting for Ray at {host}:{port} ({why}), for up to {patience:g} s\n"
            )
            sys.stderr.flush()
        time.sleep(min(1.0, left))


def _parsed(address: str, target: str) -> tuple[str, int]:
    host, _, port = target.partition("://")[2 if "://" in target else 0].rpartition(":")
    port = port.partition("/")[0]
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"{KEY}={address}: must be local, auto, HOST:PORT or ray://HOST:PORT")
    return host.strip("[]"), int(port)


def _greet(host: str, port: int, seconds: float) -> None:
    """Say hello as Ray's clients do.

    Raises:
        OSError: Nobody answers, or not as Ray does.
    """
    with socket.create_connection((host, port), timeout=seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # hello is said under cover
        connection.sendall(_HELLO)
        answer = b""
        while len(answer) < _FRAME_BYTES:
            more = connection.recv(_FRAME_BYTES - len(answer))
            if not more:
                break
            answer += more
    if len(answer) < _FRAME_BYTES or answer[_TYPE_BYTE] != _SETTINGS:
        raise ConnectionError("what listens there is not Ray")
