"""up, down and status of a whole testbed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from . import files, images, machine, network, rootfs
from . import host as hosts
from .layout import CACHE, DATA, MAX_HOSTS, RUN, Host, Testbed
from .shell import Failure


def up(testbed: Testbed, count: int) -> None:
    """Make the hosts 1..count, or as many more as are missing. Running ones are left alone."""
    if not 0 <= count <= MAX_HOSTS:
        raise Failure(f"--hosts {count}: from 1 to {MAX_HOSTS}")
    machine.check()
    machine.install_packages()
    with _locked(testbed):
        _foundations(testbed)
        wanted = [testbed.host(number) for number in range(1, count + 1)]
        _each(lambda host: hosts.boot(host, testbed.shares), wanted)
        there = testbed.hosts()
        if there:
            _each(lambda host: hosts.name_neighbours(host, there), there)
            files.write_all(testbed, there)


def build_vllm(testbed: Testbed) -> str:
    with _locked(testbed):
        _foundations(testbed)
        return images.build_vllm(testbed)


def _foundations(testbed: Testbed) -> None:
    testbed.models.mkdir(parents=True, exist_ok=True)
    testbed.subnet_file.write_text(f"{testbed.subnet}\n")
    files.write_key(testbed)
    rootfs.build_host_root()
    network.build_bridge(testbed)
    images.serve_registry(testbed)
    images.build_images(testbed)


def down(testbed: Testbed, *, purge: bool) -> None:
    with _locked(testbed):
        _each(hosts.erase, [*testbed.hosts(), testbed.builder()])
        images.stop_registry(testbed)
        network.remove_bridge(testbed)
        files.remove_all(testbed)
        hosts.remove_cgroup_root(testbed)
        for directory in (testbed.data, testbed.run):
            shutil.rmtree(directory)
        if purge:
            _purge()


def _purge() -> None:
    """Cache and models belong to all testbeds of the machine."""
    others = sorted(path.name for path in RUN.iterdir())
    if others:
        raise Failure(f"not purged: testbed {', '.join(others)} still uses the cache")
    rootfs.discard(CACHE)
    for directory in (DATA, RUN):
        shutil.rmtree(directory)


def status(testbed: Testbed) -> dict[str, object]:
    there = testbed.hosts()
    states = [_host_status(host) for host in there]
    return {
        "name": testbed.name,
        "running": bool(states) and all(state["running"] for state in states),
        "registry": testbed.registry,
        "image": testbed.image(files.NODE_IMAGE),
        "ssh_config": str(testbed.ssh_config),
        "cluster_yaml": str(testbed.cluster_yaml),
        "models": str(testbed.models),
        "hosts": states,
    }


def _host_status(host: Host) -> dict[str, object]:
    return {
        "name": host.name,
        "address": host.address,
        "running": hosts.running(host),
        "sshd": hosts.ssh_answers(host),
        "dockerd": hosts.docker_answers(host),
    }


def status_text(testbed: Testbed) -> str:
    now = status(testbed)
    states = now["hosts"]
    assert isinstance(states, list)
    rows = [_row(state) for state in states]
    if not rows:
        return f"testbed {testbed.name}: not up"
    return "\n".join([*rows, f"registry {testbed.registry}", f"config   {testbed.cluster_yaml}"])


def _row(state: dict[str, object]) -> str:
    answers = [f"{name} {'answers' if state[name] else 'silent'}" for name in ("sshd", "dockerd")]
    return f"{state['name']}  {state['address']:12}  {'  '.join(answers)}"


def find(testbed: Testbed, name: str) -> Host:
    there = {host.name: host for host in testbed.hosts()}
    if name not in there:
        raise Failure(f"no host {name!r}; there are: {', '.join(there) or 'none, run up first'}")
    return there[name]


@contextmanager
def _locked(testbed: Testbed) -> Iterator[None]:
    """One `up` or `down` at a time on the machine, whatever the testbed: they share the cache."""
    testbed.run.mkdir(parents=True, exist_ok=True)
    testbed.data.mkdir(parents=True, exist_ok=True)
    lock = os.open(RUN, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _each(act: Callable[[Host], None], there: Sequence[Host]) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        for _ in pool.map(act, there):
            pass
