"""One contract for what runs containers: the fake that other tests rely on, and a real Docker
Engine, spoken to through a real sshd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from clusterctl.containers import LABEL_HELPER, ContainerFile, ContainerSpec, HelperSpec
from clusterctl.dockerhost import DockerHost
from clusterctl.errors import ClusterctlError, CommandFailed, NotReady
from clusterctl.runtime import PullProgress, Runtime
from clusterctl.transport.ssh import SshHosts
from tests.clusterctl import dockerd
from tests.clusterctl.sshd import Sshd
from tests.fakes import FakeRuntime, Says

NAME = "clusterctl-test-gpu01"
SPEC = ContainerSpec(
    name=NAME,
    image=dockerd.IMAGE,
    command=("sh", "-c", "echo one; echo two; echo three; sleep 600"),
    labels={"clusterctl.cluster": "test", "clusterctl.role": "head"},
)
SPEAK = ("sh", "-c", "echo out; echo err >&2; exit 3")
CAT = ("cat",)
GREET = ("sh", "-c", 'echo "$GREETING"')
LINES = ("sh", "-c", r"printf 'one\ntwo\nthree'; exit 4")
SLEEP = ("sleep", "601")
ABSENT = ("no-such-command-here",)


@pytest.fixture(scope="module")
def docker_over_ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerHost]:
    if not dockerd.can_run():
        pytest.skip("needs root and dockerd")
    engine = dockerd.Dockerd(tmp_path_factory.mktemp("dockerd")).start()
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    hosts = SshHosts(server.spec())
    try:
        engine.add_image()
        yield DockerHost(hosts.connect(server.node()), engine.socket)
    finally:
        hosts.close()
        server.stop()
        engine.stop()


def fake() -> FakeRuntime:
    return FakeRuntime(
        "gpu01",
        images=[dockerd.IMAGE],
        replies={
            SPEAK: Says("out\n", "err\n", 3),
            CAT: lambda stdin: stdin.decode(),
            GREET: "hello\n",
            LINES: Says("one\ntwo\nthree", exit_code=4),
            SLEEP: Says(hangs=True),
            ABSENT: Says(stderr="no-such-command-here: executable file not found", exit_code=127),
        },
    )


@pytest.fixture(params=["fake", "docker"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    runtime: Runtime = (
        fake() if request.param == "fake" else request.getfixturevalue("docker_over_ssh")
    )
    yield runtime
    for container in runtime.containers({"clusterctl.cluster": ""}):
        runtime.remove(container.id)


@pytest.fixture
def running(runtime: Runtime) -> str:
    container = runtime.create(SPEC)
    runtime.start(container)
    return container


def test_a_container_is_created_started_stopped_and_removed(runtime: Runtime) -> None:
    container = runtime.create(SPEC)
    (made,) = runtime.containers({"clusterctl.cluster": "test"})
    assert (made.id, made.name, made.image, made.state) == (
        container,
        NAME,
        dockerd.IMAGE,
        "created",
    )
    assert made.image_id == runtime.image_id(dockerd.IMAGE)
    assert made.labels["clusterctl.role"] == "head"
    assert made.exit_code is None
    runtime.start(container)
    (started,) = runtime.containers({"clusterctl.cluster": "test"})
    assert started.state == "running"
    assert started.started_at > made.started_at
    runtime.stop(container, timeout=0)
    (stopped,) = runtime.containers({"clusterctl.cluster": "test"})
    assert stopped.state == "exited"
    assert stopped.exit_code is not None
    runtime.remove(container)
    assert runtime.containers({"clusterctl.cluster": "test"}) == []


def test_containers_are_found_by_all_their_labels(runtime: Runtime) -> None:
    container = runtime.create(SPEC)
    found = {
        str(labels): [c.id for c in runtime.containers(labels)]
        for labels in (
            {"clusterctl.cluster": ""},
            {"clusterctl.cluster": "test", "clusterctl.role": "head"},
            {"clusterctl.cluster": "test", "clusterctl.role": "worker"},
            {"clusterctl.cluster": "other"},
            {"absent": ""},
        )
    }
    assert list(found.values()) == [[container], [container], [], [], []]


def test_a_name_is_given_once(runtime: Runtime) -> None:
    runtime.create(SPEC)
    with pytest.raises(ClusterctlError, match=NAME) as caught:
        runtime.create(SPEC)
    assert caught.value.host == "gpu01"


def test_removing_what_is_gone_is_no_error(runtime: Runtime) -> None:
    container = runtime.create(SPEC)
    runtime.remove(container)
    runtime.remove(container)


def test_an_image_that_is_not_there_has_no_id(runtime: Runtime) -> None:
    assert runtime.image_id("no-such-image:1") is None


def test_a_pull_from_nowhere_names_host_and_image(runtime: Runtime) -> None:
    seen: list[PullProgress] = []
    with pytest.raises(ClusterctlError, match=r"127\.0\.0\.1:1/nothing") as caught:
        runtime.pull("127.0.0.1:1/nothing:1", seen.append)
    assert caught.value.host == "gpu01"


def test_files_are_put_before_the_start_and_read_back(runtime: Runtime) -> None:
    container = runtime.create(SPEC)
    secret = ContainerFile("/opt/clusterctl/secrets/token", b"s3cret\x00", 0o600)
    script = ContainerFile("/opt/clusterctl/run.py", b"print()\n")
    runtime.put_files(container, [secret, script])
    runtime.start(container)
    assert runtime.read_file(container, secret.path) == secret.data
    assert runtime.read_file(container, script.path) == script.data
    assert runtime.read_file(container, "/opt/clusterctl/absent") is None


def test_reading_from_a_container_that_is_gone_is_an_error(runtime: Runtime) -> None:
    with pytest.raises(ClusterctlError):
        runtime.read_file("0123456789abcdef", "/etc/passwd")


def test_exec_keeps_both_outputs_and_the_code(runtime: Runtime, running: str) -> None:
    result = runtime.exec(running, SPEAK, check=False)
    assert (result.argv, result.exit_code) == (SPEAK, 3)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_exec_raises_on_a_code_by_default(runtime: Runtime, running: str) -> None:
    with pytest.raises(CommandFailed, match="sh exited 3: err") as caught:
        runtime.exec(running, SPEAK)
    assert caught.value.host == "gpu01"


def test_exec_feeds_stdin_whole_while_output_comes_back(runtime: Runtime, running: str) -> None:
    data = b"0123456789abcdef" * 200_000
    assert runtime.exec(running, CAT, stdin=data).stdout == data.decode()


def test_exec_passes_environment(runtime: Runtime, running: str) -> None:
    assert runtime.exec(running, GREET, env={"GREETING": "hello"}).stdout == "hello\n"


def test_exec_of_a_program_that_is_not_there_is_127(runtime: Runtime, running: str) -> None:
    result = runtime.exec(running, ABSENT, check=False)
    assert result.exit_code == 127
    assert ABSENT[0] in result.stderr


def test_exec_past_its_time_names_the_command(runtime: Runtime, running: str) -> None:
    with pytest.raises(NotReady, match="sleep") as caught:
        runtime.exec(running, SLEEP, timeout=0.5)
    assert caught.value.host == "gpu01"


def test_exec_needs_a_running_container(runtime: Runtime) -> None:
    container = runtime.create(SPEC)
    with pytest.raises(ClusterctlError, match="not running"):
        runtime.exec(container, SPEAK)


def test_exec_stream_hands_over_lines_and_the_code(runtime: Runtime, running: str) -> None:
    lines: list[str] = []
    assert runtime.exec_stream(running, LINES, lines.append) == 4
    assert lines == ["one", "two", "three"]


def test_run_once_shows_what_an_image_holds_and_leaves_nothing(runtime: Runtime) -> None:
    result = runtime.run_once(dockerd.IMAGE, SPEAK)
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert runtime.run_once(dockerd.IMAGE, ABSENT).exit_code == 127
    assert runtime.containers({}) == []


def test_run_once_past_its_time_leaves_nothing(runtime: Runtime) -> None:
    with pytest.raises(NotReady):
        runtime.run_once(dockerd.IMAGE, SLEEP, timeout=1.0)
    assert runtime.containers({}) == []


def test_run_once_needs_the_image(runtime: Runtime) -> None:
    with pytest.raises(ClusterctlError, match="no-such-image"):
        runtime.run_once("no-such-image:1", SPEAK)


def test_logs_are_lines_and_may_be_cut_to_the_last(runtime: Runtime, running: str) -> None:
    if isinstance(runtime, FakeRuntime):
        runtime.boxes[running].log = ["one", "two", "three"]
    else:
        wait_for_lines(runtime, running, 3)
    assert list(runtime.logs(running)) == ["one", "two", "three"]
    assert list(runtime.logs(running, tail=2)) == ["two", "three"]
    assert list(runtime.logs(running, tail=0)) == []


def wait_for_lines(runtime: Runtime, container: str, count: int) -> None:
    following = runtime.logs(container, follow=True)
    for _ in range(count):
        next(following)


# --- what only a real Engine can show


def test_files_have_their_modes_and_root_owns_them(docker_over_ssh: DockerHost) -> None:
    container = docker_over_ssh.create(SPEC)
    file = ContainerFile("/opt/clusterctl/secrets/token", b"s3cret", 0o600)
    docker_over_ssh.put_files(container, [file])
    docker_over_ssh.start(container)
    listed = docker_over_ssh.exec(container, ["stat", "-c", "%a %u %g %n", "/opt", file.path])
    assert listed.stdout.splitlines() == ["755 0 0 /opt", "600 0 0 /opt/clusterctl/secrets/token"]
    docker_over_ssh.remove(container)


def test_followed_logs_come_while_the_container_runs(docker_over_ssh: DockerHost) -> None:
    """The container waits for a file that only its own first line makes us write."""
    script = "echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo second >&2"
    container = docker_over_ssh.create(
        ContainerSpec("follower", dockerd.IMAGE, ("sh", "-c", script), restart="no")
    )
    docker_over_ssh.start(container)
    lines = docker_over_ssh.logs(container, follow=True)
    assert next(lines) == "first"
    docker_over_ssh.exec(container, ["touch", "/tmp/go"])
    assert list(lines) == ["second"]
    docker_over_ssh.remove(container)


def test_exec_past_its_time_is_ended_over_there(docker_over_ssh: DockerHost) -> None:
    """With what it had started: only the container's own process is left."""
    container = docker_over_ssh.create(replace(SPEC, command=("sleep", "600")))
    docker_over_ssh.start(container)
    with pytest.raises(NotReady):
        docker_over_ssh.exec(container, ["sh", "-c", "sleep 602; echo"], timeout=1.0)
    left = docker_over_ssh.exec(container, ["sh", "-c", "cat /proc/[0-9]*/cmdline"])
    assert "602" not in left.stdout
    docker_over_ssh.remove(container)


def test_a_helper_is_a_stream_and_gone_when_that_is_closed(runtime: Runtime) -> None:
    spec = HelperSpec("helper", dockerd.IMAGE, ("sh", "-c", "cat"), labels={LABEL_HELPER: "me"})
    stream = runtime.open_helper(spec, [])
    stream.sendall(b"hello")
    said = b""
    while len(said) < 5:
        said += stream.recv(100)
    assert said == b"hello"
    stream.shutdown_write()
    assert stream.recv(100) == b""
    stream.close()
    assert runtime.containers({LABEL_HELPER: ""}) == []
