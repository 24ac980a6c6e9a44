"""Docker's own answers, beyond those recorded from real hosts."""

from __future__ import annotations

import json

from clusterctl.facts.docker import NO_CLIENT, parse_docker, parse_info, root_disk
from clusterctl.facts.sections import Section

INFO = {
    "DockerRootDir": "/data/docker",
    "Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "nvidia-container-runtime"}},
    "CgroupDriver": "systemd",
    "HttpProxy": "http://proxy:3128",
    "HttpsProxy": "",
    "NoProxy": "localhost",
}
VERSION = {"Version": "28.1.1", "ApiVersion": "1.49"}


def test_runtimes_and_proxies() -> None:
    facts = parse_info(INFO, {"Client": {}, "Server": VERSION}, needs_sudo=True)
    assert facts.runtimes == ("nvidia", "runc")
    assert (facts.http_proxy, facts.https_proxy, facts.no_proxy) == (
        "http://proxy:3128",
        None,
        "localhost",
    )
    assert (facts.version, facts.api_version, facts.needs_sudo) == ("28.1.1", "1.49", True)


def test_a_daemon_that_answers_only_half_is_no_daemon() -> None:
    answers = {
        "docker_installed": Section("/usr/bin/dockerd", "", 0),
        "docker_access": Section("", "", 0),
        "docker_info": Section(json.dumps(INFO), "", 0),
        "docker_version": Section("", "", 124),
    }
    assert parse_docker(answers, "/s").error == "no answer within 15 s"
    silent = Section("", "", NO_CLIENT)
    answers |= {"docker_info": silent, "docker_version": silent}
    assert (
        parse_docker(answers, "/s").error
        == "/s is there, but neither docker nor curl is, to ask it"
    )


def test_the_disk_of_its_root_comes_behind_its_answer() -> None:
    line = "/data/docker\t/dev/sdb 100 50 50 50% /data"
    assert root_disk(Section(f"{json.dumps(INFO)}\n{line}\n", "", 0)) == line
    assert root_disk(Section("", "Cannot connect", 1)) == ""
