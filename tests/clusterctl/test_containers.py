"""The two ways to say a container, exactly. That Docker hears the same in both is an integration
test's to see."""

from __future__ import annotations

from dataclasses import replace

from clusterctl.containers import (
    ContainerSpec,
    Ulimit,
    container_name,
    docker_run_line,
    sdk_arguments,
    spec_hash,
)
from clusterctl.spec import MountSpec

PLAIN = ContainerSpec(
    name="clusterctl-c-gpu01",
    image="img:1",
    command=("python3", "/opt/clusterctl/supervisor.py", "--", "ray", "start"),
)
FULL = replace(
    PLAIN,
    env={"A": "b c", "NCCL_SOCKET_IFNAME": "=eth0"},
    labels={"clusterctl.cluster": "c"},
    mounts=(MountSpec("/models", "/models", read_only=True), MountSpec("/a", "/b")),
    devices=("/dev/infiniband",),
    gpus="0,1",
    cap_add=("CAP_IPC_LOCK",),
    security_opt=("seccomp=unconfined",),
    group_add=("video",),
    ulimits=(Ulimit("memlock", -1, -1),),
    shm_size=1 << 30,
    ipc=None,
)


def test_the_line_for_a_plain_node() -> None:
    assert docker_run_line(PLAIN) == (
        "docker run --detach --name clusterctl-c-gpu01 --network host --init --user root"
        " --restart always --ipc host --log-driver json-file --log-opt max-size=64m"
        " --log-opt max-file=4 --entrypoint python3 img:1 /opt/clusterctl/supervisor.py"
        " -- ray start"
    )


def test_the_line_with_everything() -> None:
    assert docker_run_line(FULL) == (
        "docker run --detach --name clusterctl-c-gpu01 --network host --init --user root"
        " --restart always --shm-size 1073741824 --gpus '\"device=0,1\"'"
        " --device /dev/infiniband --cap-add CAP_IPC_LOCK --security-opt seccomp=unconfined"
        " --group-add video --ulimit memlock=-1:-1 --log-driver json-file --log-opt max-size=64m"
        " --log-opt max-file=4 --mount type=bind,source=/models,target=/models,readonly"
        " --mount type=bind,source=/a,target=/b --env 'A=b c' --env NCCL_SOCKET_IFNAME==eth0"
        " --label clusterctl.cluster=c --entrypoint python3 img:1 /opt/clusterctl/supervisor.py"
        " -- ray start"
    )


def test_the_engine_is_told_the_same() -> None:
    assert sdk_arguments(FULL) == {
        "Image": "img:1",
        "User": "root",
        "Entrypoint": ["python3"],
        "Cmd": ["/opt/clusterctl/supervisor.py", "--", "ray", "start"],
        "Env": ["A=b c", "NCCL_SOCKET_IFNAME==eth0"],
        "Labels": {"clusterctl.cluster": "c"},
        "HostConfig": {
            "BlkioWeightDevice": [],
            "Dns": [],
            "DnsOptions": [],
            "DnsSearch": [],
            "PortBindings": {},
            "NetworkMode": "host",
            "Init": True,
            "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": "64m", "max-file": "4"},
            },
            "DeviceRequests": [
                {
                    "Driver": "",
                    "Capabilities": [["gpu"]],
                    "Options": {},
                    "DeviceIDs": ["0", "1"],
                }
            ],
            "Devices": [
                {
                    "PathOnHost": "/dev/infiniband",
                    "PathInContainer": "/dev/infiniband",
                    "CgroupPermissions": "rwm",
                }
            ],
            "CapAdd": ["CAP_IPC_LOCK"],
            "SecurityOpt": ["seccomp=unconfined"],
            "GroupAdd": ["video"],
            "Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}],
            "ShmSize": 1 << 30,
            "Mounts": [
                {"Type": "bind", "Source": "/models", "Target": "/models", "ReadOnly": True},
                {"Type": "bind", "Source": "/a", "Target": "/b"},
            ],
        },
    }


def test_all_gpus_are_counted_by_docker() -> None:
    every = replace(PLAIN, gpus="all")
    assert "--gpus all" in docker_run_line(every)
    (request,) = sdk_arguments(every)["HostConfig"]["DeviceRequests"]
    assert request["Count"] == -1


def test_the_hash_is_of_what_was_asked_for() -> None:
    assert spec_hash(PLAIN) == spec_hash(replace(PLAIN, labels={"clusterctl.version": "9"}))
    assert spec_hash(PLAIN) != spec_hash(FULL)
    assert spec_hash(PLAIN) != spec_hash(replace(PLAIN, env={"A": "1"}))


def test_names_are_deterministic() -> None:
    assert container_name("c", "gpu01") == PLAIN.name
