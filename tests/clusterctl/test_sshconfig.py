from pathlib import Path

import pytest

from clusterctl.errors import ConfigError
from clusterctl.spec import NodeSpec, SshSpec
from clusterctl.transport import sshconfig
from clusterctl.transport.sshconfig import Wanted, parse_ssh_g, read_files, resolve, target_of

CONFIG = """\
Host gpu01
    HostName 10.0.0.1
    User alice
    Port 2222
    IdentityFile ~/keys/%r-%h
    IdentitiesOnly yes
    ProxyJump bastion
    HostKeyAlias the-gpu
    UserKnownHostsFile ~/a ~/b
    ConnectTimeout 7
Host behind
    ProxyCommand nc -x %r@proxy %h %p
    IdentityAgent none
Host *
    User everyone
"""


@pytest.fixture(params=["ssh -G", "parser"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same answers from an ssh client and from the parser that serves without one."""
    if request.param == "parser":
        monkeypatch.setattr(sshconfig.shutil, "which", lambda _: None)
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent.sock")
    file = tmp_path / "config"
    file.write_text(CONFIG)
    return str(file)


def home(name: str) -> str:
    return str(Path.home() / name)


def test_an_alias_is_resolved(config: str) -> None:
    target = resolve(Wanted("gpu01"), SshSpec(config=config))
    assert target.where == "alice@10.0.0.1:2222"
    assert target.identities == (home("keys/alice-10.0.0.1"),)
    assert target.identities_only
    assert (target.jump, target.proxy_command) == ("bastion", None)
    assert target.host_key_alias == "the-gpu"
    assert target.known_hosts[:2] == (home("a"), home("b"))
    assert target.connect_timeout == 7.0
    assert target.agent == "/agent.sock"


def test_what_the_node_says_wins(config: str) -> None:
    node = NodeSpec("n", "gpu01", user="bob", port=22, identity="/k")
    spec = SshSpec(config=config, known_hosts="/known")
    target = resolve(Wanted.of_node(node), spec)
    assert target.where == "bob@10.0.0.1:22"
    assert (target.identities, target.identities_only) == (("/k",), True)
    assert target.known_hosts == ("/known",)


def test_a_proxy_command_has_its_tokens_filled_in(config: str) -> None:
    target = resolve(Wanted("behind"), SshSpec(config=config))
    assert target.proxy_command == "nc -x everyone@proxy behind 22"
    assert target.agent is None


def test_a_host_that_nothing_is_said_about(config: str) -> None:
    target = resolve(Wanted("other"), SshSpec(config=config))
    assert target.where == "everyone@other:22"
    assert home(".ssh/id_ed25519") in target.identities
    assert not target.identities_only
    assert target.known_hosts[0] == home(".ssh/known_hosts")


def test_a_name_that_is_an_option_is_refused(config: str) -> None:
    with pytest.raises(ConfigError, match="-oProxyCommand"):
        resolve(Wanted("-oProxyCommand=touch /tmp/x"), SshSpec(config=config))


def test_ssh_says_what_it_does_not_accept(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("Host *\n  NoSuchOption yes\n")
    with pytest.raises(ConfigError, match="(?i)bad configuration option: nosuchoption"):
        resolve(Wanted("gpu01"), SshSpec(config=str(file)))


@pytest.mark.parametrize(
    "line", ["Include other", "include=other", "Match exec true", "Match host a exec 'true'"]
)
def test_without_a_client_what_cannot_be_understood_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "config"
    file.write_text(f"Host gpu01\n  User bob\n{line}\n")
    with pytest.raises(ConfigError, match=r"config:3: .* needs an ssh client"):
        read_files([file], "gpu01")


def test_unknown_tokens_are_refused() -> None:
    options = parse_ssh_g("proxycommand run %T\n")
    with pytest.raises(ConfigError, match="%T"):
        target_of(Wanted("a"), options, SshSpec())


@pytest.mark.parametrize(
    ("jump", "wanted"),
    [
        ("bastion", Wanted("bastion")),
        ("bob@bastion:2222", Wanted("bastion", "bob", 2222)),
        ("ssh://bob@bastion:2222", Wanted("bastion", "bob", 2222)),
        ("[fe80::1]:22", Wanted("fe80::1", None, 22)),
        ("a,bob@b:1,c", Wanted("c", jump="a,bob@b:1")),
    ],
)
def test_jumps(jump: str, wanted: Wanted) -> None:
    assert Wanted.of_jump(jump) == wanted


def test_a_jump_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="ProxyJump"):
        Wanted.of_jump("a b@c:d")
