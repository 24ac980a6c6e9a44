"""What `up` writes for people and for clusterctl: keys, ssh_config, known_hosts, cluster.yaml."""

from __future__ import annotations

from collections.abc import Sequence

from .layout import DEFAULT_NAME, Host, Testbed
from .shell import run

NODE_IMAGE = "infercluster-node"


def write_key(testbed: Testbed) -> None:
    testbed.state.mkdir(parents=True, exist_ok=True)
    if not testbed.key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", testbed.key])


def write_all(testbed: Testbed, hosts: Sequence[Host]) -> None:
    testbed.ssh_config.write_text(ssh_config(testbed, hosts))
    testbed.known_hosts.write_text("".join(_known_host(host) for host in hosts))
    testbed.cluster_yaml.write_text(cluster_yaml(testbed, hosts))


def remove_all(testbed: Testbed) -> None:
    public = testbed.key.with_suffix(".pub")
    for path in (testbed.ssh_config, testbed.known_hosts, testbed.cluster_yaml):
        path.unlink(missing_ok=True)
    for path in (testbed.key, public):
        path.unlink(missing_ok=True)
    if testbed.state.exists() and not any(testbed.state.iterdir()):
        testbed.state.rmdir()


def ssh_config(testbed: Testbed, hosts: Sequence[Host]) -> str:
    return "\n".join(_ssh_entry(testbed, host) for host in hosts)


def _ssh_entry(testbed: Testbed, host: Host) -> str:
    return f"""Host {host.name}
    HostName {host.address}
    User root
    IdentityFile {testbed.key}
    IdentitiesOnly yes
    UserKnownHostsFile {testbed.known_hosts}
    StrictHostKeyChecking yes
"""


def _known_host(host: Host) -> str:
    kind, key, _ = (host.upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    return f"{host.address},{host.name} {kind} {key}\n"


def cluster_yaml(testbed: Testbed, hosts: Sequence[Host]) -> str:
    lines = [f"  - {{name: {host.name}, address: {host.name}}}" for host in hosts]
    name = "testbed" if testbed.name == DEFAULT_NAME else f"testbed-{testbed.name}"
    return f"""name: {name}
head: {hosts[0].name}
image: {testbed.image(NODE_IMAGE)}
devices: {{kind: cpu, count: 1}}
model_dirs: [/models]
ssh: {{config: {testbed.ssh_config}}}
hosts:
{chr(10).join(lines)}
"""
