"""Real depots, one process for each "host" with a directory of its own, on this machine."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusterctl.errors import ClusterctlError, LockHeld, PreflightFailed
from clusterctl.events import silent
from clusterctl.transfer import chain
from clusterctl.transfer.depot import Depot
from clusterctl.transfer.depots import booted
from clusterctl.transfer.models import scan
from clusterctl.transfer.places import Place
from clusterctl.transfer.push import Arrival, Origin, Push
from clusterctl.transfer.trees import Seen, faults
from clusterctl.transport.local import LocalTransport
from tests import hub

NODES = ("gpu01", "gpu02", "gpu03")
Open = Callable[[str], Depot]


@pytest.fixture
def open_depot() -> Iterator[Open]:
    made: list[Depot] = []

    def start(name: str) -> Depot:
        made.append(Depot(name, booted(LocalTransport(name), sys.executable)))
        return made[-1]

    yield start
    for depot in made:
        depot.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    root = tmp_path / "source/tiny"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "empty").touch()
    (root / "sub/model.safetensors").write_bytes(os.urandom(3_000_000))
    (root / "model.safetensors").write_bytes(os.urandom(2_000_001))
    return root


def directories(tmp_path: Path) -> dict[str, str]:
    made = {name: tmp_path / name for name in NODES}
    for path in made.values():
        path.mkdir(exist_ok=True)
    return {name: str(path) for name, path in made.items()}


def push(
    open_depot: Open,
    model: Path,
    parents: dict[str, str],
    *,
    keep: bool = False,
    fresh: bool = False,
    source: str | None = None,
) -> dict[str, Arrival]:
    depots = {name: open_depot(name) for name in parents}
    scanner = depots[source] if source else open_depot("here")
    made = Push(
        place=Place(model.name, parents, keep),
        origin=Origin(str(model), source),
        tree=scan(scanner, str(model), silent, record=str(model.parent / "record.json")),
        depots=depots,
        addresses=dict.fromkeys(parents, "127.0.0.1"),
        speeds=dict.fromkeys(parents, 0),
        report=silent,
        fresh=fresh,
    )
    try:
        return made.run()
    finally:
        for depot in depots.values():
            depot.close()


def content(root: Path) -> dict[str, bytes | str]:
    """Files with their bytes and links with their targets; not our own record."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.name != ".clusterctl.json"
    }


def took(arrivals: dict[str, Arrival]) -> int:
    return sum(one.received + one.fed for one in arrivals.values())


def test_every_host_gets_it_and_passes_it_on(open_depot: Open, model: Path, tmp_path: Path) -> None:
    parents = directories(tmp_path)
    size = sum(len(data) for data in content(model).values())
    first = push(open_depot, model, parents)
    assert [(one.fed, one.received, one.sent) for one in first.values()] == [
        (size, 0, size),
        (0, size, size),
        (0, size, 0),
    ]
    for parent in parents.values():
        assert content(Path(parent, "tiny")) == content(model)
        assert sorted(os.listdir(parent)) == ["tiny"], "nothing is left beside it"
    second = push(open_depot, model, parents)
    assert {one.state for one in second.values()} == {"kept"}
    assert took(second) == sum(one.sent for one in second.values()) == 0


def test_a_new_host_takes_it_from_the_others(open_depot: Open, model: Path, tmp_path: Path) -> None:
    parents = directories(tmp_path)
    push(open_depot, model, {"gpu02": parents["gpu02"]})
    arrivals = push(open_depot, model, parents)
    assert sum(one.fed for one in arrivals.values()) == 0
    assert arrivals["gpu02"].state == "kept"
    assert content(Path(parents["gpu03"], "tiny")) == content(model)


def test_from_a_node(open_depot: Open, model: Path, tmp_path: Path) -> None:
    parents = directories(tmp_path) | {"gpu01": str(model.parent)}
    arrivals = push(open_depot, model, parents, source="gpu01")
    assert [one.state for one in arrivals.values()] == ["kept", "copied", "copied"]
    assert all(one.fed == 0 for one in arrivals.values())
    assert content(Path(parents["gpu03"], "tiny")) == content(model)


def test_a_source_that_is_not_whole_any_more_fails_by_name(
    open_depot: Open, model: Path, tmp_path: Path
) -> None:
    """Its bytes have changed behind the record's back: no host may call them the model."""
    parents = directories(tmp_path) | {"gpu01": str(model.parent)}
    push(open_depot, model, {"gpu01": parents["gpu01"]}, source="gpu01")
    shard = model / "model.safetensors"
    before = shard.stat()
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    arrivals = push(open_depot, model, parents, source="gpu01")
    assert arrivals["gpu01"].state == "kept"
    failure = arrivals["gpu02"].error
    assert failure is not None
    assert failure.message == "model.safetensors from gpu01 has a wrong digest"
    assert not Path(parents["gpu02"], "tiny").exists()


def test_what_has_arrived_is_not_sent_again(open_depot: Open, model: Path, tmp_path: Path) -> None:
    parents = {"gpu01": directories(tmp_path)["gpu01"]}
    part = Path(parents["gpu01"], ".tiny.clusterctl/tree/model.safetensors")
    part.parent.mkdir(parents=True)
    part.write_bytes((model / "model.safetensors").read_bytes()[:1_500_000])
    size = sum(len(data) for data in content(model).values())
    assert took(push(open_depot, model, parents)) == size - 1_500_000
    assert content(Path(parents["gpu01"], "tiny")) == content(model)


def test_a_part_that_is_wrong_is_found_and_fetched_anew(
    open_depot: Open, model: Path, tmp_path: Path
) -> None:
    parents = directories(tmp_path)
    push(open_depot, model, {"gpu01": parents["gpu01"]})
    part = Path(parents["gpu02"], ".tiny.clusterctl/tree/model.safetensors")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"wrong" * 1000)
    arrivals = push(open_depot, model, {name: parents[name] for name in ("gpu01", "gpu02")})
    assert arrivals["gpu02"].state == "copied"
    assert content(Path(parents["gpu02"], "tiny")) == content(model)


def test_a_plain_directory_becomes_the_new_one_and_a_cache_keeps_the_rest(
    open_depot: Open, model: Path, tmp_path: Path
) -> None:
    parents = {"gpu01": directories(tmp_path)["gpu01"]}
    there = Path(parents["gpu01"], "tiny")
    there.mkdir()
    (there / "other").write_text("stays in a cache")
    push(open_depot, model, parents, keep=True)
    assert content(there) == {**content(model), "other": b"stays in a cache"}
    push(open_depot, model, parents)
    assert content(there) == content(model)


def test_the_layout_of_the_hugging_face_cache_is_kept(open_depot: Open, tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--org--tiny"
    snapshot = repository / "snapshots/abc123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "blobs/1234").write_text("{}")
    (repository / "refs/main").write_text("abc123")
    (repository / "blobs/77.incomplete").write_text("half")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    parents = directories(tmp_path)
    push(open_depot, repository, parents, keep=True)
    assert content(Path(parents["gpu03"], repository.name)) == {
        "blobs/1234": b"{}",
        "refs/main": b"abc123",
        "snapshots/abc123/config.json": "../../blobs/1234",
    }


def test_a_snapshot_alone_becomes_plain_files(open_depot: Open, tmp_path: Path) -> None:
    """Its links lead out of what is copied."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/1").write_text("{}")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").symlink_to("../blobs/1")
    parents = {"gpu01": directories(tmp_path)["gpu01"]}
    push(open_depot, snapshot, parents)
    assert content(Path(parents["gpu01"], "snapshot")) == {"config.json": b"{}"}


def test_nodes_with_one_disk_get_one_copy(open_depot: Open, model: Path, tmp_path: Path) -> None:
    own = directories(tmp_path)
    parents = {"gpu01": own["gpu01"], "gpu02": own["gpu01"], "gpu03": own["gpu03"]}
    arrivals = push(open_depot, model, parents)
    assert [one.state for one in arrivals.values()] == ["copied", "shared", "copied"]
    assert sorted(os.listdir(own["gpu01"])) == ["tiny"]


def test_a_byte_that_rotted_unseen_is_found_by_reading(
    open_depot: Open, model: Path, tmp_path: Path
) -> None:
    parents = {"gpu01": directories(tmp_path)["gpu01"]}
    push(open_depot, model, parents)
    shard = Path(parents["gpu01"], "tiny/model.safetensors")
    before = shard.stat()
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    depot = open_depot("gpu01")
    recorded = depot.call("recorded", path=str(shard.parent))["digests"]
    seen = scan(depot, str(shard.parent), silent, fresh=True)
    (fault,) = faults({"gpu01": Seen(seen, recorded)})
    assert (fault.node, fault.path) == ("gpu01", "model.safetensors")
    assert took(push(open_depot, model, parents)) == 0, "size and time are believed"
    assert took(push(open_depot, model, parents, fresh=True)) == shard.stat().st_size


def test_one_run_at_a_time_writes_a_model(open_depot: Open, model: Path, tmp_path: Path) -> None:
    parents = {"gpu01": directories(tmp_path)["gpu01"]}
    tree = scan(open_depot("here"), str(model), silent, record=str(tmp_path / "record"))
    stage = {"path": f"{parents['gpu01']}/tiny", "keep": False, "fresh": False, **tree.request()}
    open_depot("gpu01").call("stage", **stage)
    with pytest.raises(LockHeld, match="another run is writing"):
        push(open_depot, model, parents)


def test_nothing_is_moved_where_it_does_not_fit(
    open_depot: Open, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = directories(tmp_path)
    monkeypatch.setattr(chain, "SPARE", 1 << 60)
    with pytest.raises(PreflightFailed, match="nothing was moved"):
        push(open_depot, model, parents)
    assert [os.listdir(parent) for parent in parents.values()] == [[], [], []]


def test_bytes_are_served_to_those_with_the_token_alone(open_depot: Open, model: Path) -> None:
    depot = open_depot("gpu01")
    tree = scan(depot, str(model), silent, record=str(model.parent / "record"))
    depot.call("offer", path=str(model), files=tree.request()["files"])
    port = depot.call("serve", address="127.0.0.1", port=0, token="right")["port"]
    answers = {}
    for token in ("right", "wrong", ""):
        asking = http.client.HTTPConnection("127.0.0.1", port)
        ranged = {"Authorization": f"Bearer {token}", "Range": "bytes=1-"}
        asking.request("GET", "/0", headers=ranged)
        answer = asking.getresponse()
        answers[token] = (answer.status, answer.read())
        asking.close()
    assert answers == {"right": (206, b"}"), "wrong": (401, b""), "": (401, b"")}


def test_what_lies_there_is_listed_with_its_state(
    open_depot: Open, model: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    (top / ".coming.clusterctl/tree").mkdir(parents=True)
    (top / ".coming.clusterctl/tree/shard").write_bytes(b"12345")
    (top / "no-model").mkdir()
    (top / "torn").mkdir()
    index = '{"weight_map": {"w": "absent.safetensors"}}'
    (top / "torn/model.safetensors.index.json").write_text(index)
    (top / "torn/config.json").write_text("{}")
    (top / "models--org--hub").mkdir()
    model.rename(top / "tiny")
    said = open_depot("gpu01").call("models", directories=[str(top)])["models"]
    assert [(one["name"], one["state"]) for one in said] == [
        (f"{top}/coming", "partial"),
        ("org/hub", "complete"),
        (f"{top}/tiny", "complete"),
        (f"{top}/torn", "incomplete"),
    ]
    assert said[0]["size"] == 5


def test_removed_with_what_is_on_its_way(open_depot: Open, model: Path, tmp_path: Path) -> None:
    parents = {"gpu01": directories(tmp_path)["gpu01"]}
    push(open_depot, model, parents)
    depot = open_depot("gpu01")
    assert depot.call("remove", path=f"{parents['gpu01']}/tiny") == {"removed": True}
    assert os.listdir(parents["gpu01"]) == []
    assert depot.call("remove", path=f"{parents['gpu01']}/tiny") == {"removed": False}


def test_a_helper_that_crashes_says_so(open_depot: Open) -> None:
    depot = open_depot("gpu01")
    with pytest.raises(ClusterctlError, match="AttributeError") as crashed:
        depot.call("no_such_request")
    assert crashed.value.host == "gpu01"


SHARD = os.urandom(1_000_000)
HUB_FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": SHARD,
    "original/consolidated.00.pth": b"the same again",
}


def download(depot: Depot, parent: Path, at: hub.Hub, **changes: object) -> dict[str, str]:
    asked = {
        "path": str(parent / "models--org--tiny"),
        "model": hub.MODEL,
        "revision": "main",
        "include": [],
        "exclude": ["original/*"],
        "endpoint": at.url,
        "token": "hf_secret",
        **changes,
    }
    return dict(depot.call("hub", **asked))


def test_a_model_of_the_hub_becomes_visible_whole_and_goes_on_to_the_others(
    open_depot: Open, tmp_path: Path
) -> None:
    """By the real huggingface_hub. The blob of LFS is named by its SHA-256."""
    parents = directories(tmp_path)
    final = Path(parents["gpu01"], "models--org--tiny")
    depots = {name: open_depot(name) for name in parents}
    with hub.serving(HUB_FILES, token="hf_secret") as at:
        said = download(depots["gpu01"], final.parent, at)
        assert not final.exists(), "nothing is visible before it is whole"
        made = Push(
            place=Place(final.name, parents, keep=True),
            origin=Origin(said["tree"], "gpu01"),
            tree=scan(depots["gpu01"], said["tree"], silent),
            depots=depots,
            addresses=dict.fromkeys(parents, "127.0.0.1"),
            speeds=dict.fromkeys(parents, 0),
            report=silent,
        )
        arrivals = made.run()
        once = at.served
        assert once == len(SHARD) + len(HUB_FILES["config.json"])
        download(open_depot("gpu01"), final.parent, at)
        assert at.served == once, "what is there is not downloaded again"
    assert said["revision"] == hub.COMMIT
    assert [one.error for one in arrivals.values()] == [None] * 3
    for parent in parents.values():
        snapshot = Path(parent, final.name, "snapshots", hub.COMMIT)
        weights = snapshot / "model.safetensors"
        blob = hashlib.sha256(SHARD).hexdigest()
        assert os.readlink(weights) == f"../../blobs/{blob}"
        assert weights.read_bytes() == SHARD
        assert sorted(path.name for path in snapshot.iterdir()) == [
            "config.json",
            "model.safetensors",
        ]
        assert (snapshot.parents[1] / "refs/main").read_text() == hub.COMMIT


def test_a_hub_that_refuses_is_named_and_the_token_is_not(open_depot: Open, tmp_path: Path) -> None:
    with (
        hub.serving(HUB_FILES, token="another") as at,
        pytest.raises(ClusterctlError, match="downloading org/tiny: ") as refused,
    ):
        download(open_depot("gpu01"), tmp_path, at)
    assert "hf_secret" not in refused.value.message
    assert "--hf-token-file" in str(refused.value.hint)
