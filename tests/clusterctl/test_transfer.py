"""What a transfer decides, without hosts: whose turn it is, whether it fits, what differs."""

from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from clusterctl.commands.model import show_pushed
from clusterctl.errors import ConfigError, PreflightFailed, Unreachable
from clusterctl.transfer import chain
from clusterctl.transfer.chain import Hop, Room
from clusterctl.transfer.meter import Meter, size_text
from clusterctl.transfer.models import Pushed
from clusterctl.transfer.places import Place, local_path, place_of
from clusterctl.transfer.push import Arrival
from clusterctl.transfer.trees import Fault, Seen, Tree, TreeFile, faults
from tests.clusterctl.hosts import spec_of

HOMES = {"gpu01": "/root", "gpu02": "/home/ml"}
GB = 10**9


def tree(**digests: str) -> Tree:
    return Tree(tuple(TreeFile(path, 1, digest) for path, digest in digests.items()), {})


class TestChain:
    def test_who_lacks_least_gives_and_who_is_slow_comes_last(self) -> None:
        hops = [
            Hop("slow", 100, speed_mbit=1000),
            Hop("empty", 100, speed_mbit=100000),
            Hop("whole", 0, speed_mbit=1000),
            Hop("half", 50, speed_mbit=1000),
        ]
        assert [hop.node for hop in chain.ordered(hops)] == ["whole", "half", "empty", "slow"]

    def test_the_nearest_before_is_asked_first(self) -> None:
        hops = [Hop("a", 0, "10.0.0.1", 1), Hop("b", 0, "10.0.0.2", 2), Hop("c", 0)]
        assert chain.sources(hops, "a") == []
        assert chain.sources(hops, "c") == [
            {"name": "b", "address": "10.0.0.2", "port": 2},
            {"name": "a", "address": "10.0.0.1", "port": 1},
        ]

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    def test_nodes_of_one_disk_have_one_owner(self, disks: list[int]) -> None:
        nodes = {f"n{index}": disk for index, disk in enumerate(disks)}
        seen = {a: [b for b in nodes if nodes[a] == nodes[b]] for a in nodes}
        owners = chain.shared(seen)
        assert all(nodes[node] == nodes[owner] for node, owner in owners.items())
        assert len(set(owners.values())) == len(set(disks))

    def test_every_full_disk_is_named_with_its_numbers(self) -> None:
        rooms = {
            "gpu01": Room("/models", 500 * GB, True),
            "gpu02": Room("/models", 12 * GB, True),
            "gpu03": Room("/models", 500 * GB, False),
            "gpu04": Room("/models", 0, False),
        }
        missing = {"gpu01": 140 * GB, "gpu02": 140 * GB, "gpu03": 140 * GB, "gpu04": 0}
        with pytest.raises(PreflightFailed) as refused:
            chain.refuse_full(rooms, missing)
        assert refused.value.message == (
            "nothing was moved, as it does not fit everywhere:\n"
            "  gpu02: /models needs 140 GB and has 12.0 GB free\n"
            "  gpu03: /models cannot be written to"
        )
        assert refused.value.host == "gpu02, gpu03"


class TestFaults:
    def test_equal_trees_have_none(self) -> None:
        assert faults({"a": Seen(tree(x="1"), {}), "b": Seen(tree(x="1"), {})}) == ()

    def test_the_record_of_what_was_written_is_right_against_the_majority(self) -> None:
        wrong = Seen(tree(x="bad"), {"x": "good"})
        found = faults({"a": wrong, "b": wrong, "c": Seen(tree(x="good"), {"x": "good"})})
        assert [(fault.node, fault.path) for fault in found] == [("a", "x"), ("b", "x")]

    def test_without_a_record_the_majority_is_right(self) -> None:
        one, other = Seen(tree(x="1"), {}), Seen(tree(x="2"), {})
        found = faults({"a": one, "b": one, "c": other})
        assert found == (Fault("c", "x", "has SHA-256 2, not 1"),)

    def test_two_that_disagree_are_both_named(self) -> None:
        found = faults({"a": Seen(tree(x="1"), {}), "b": Seen(tree(x="2"), {})})
        assert {fault.node for fault in found} == {"a", "b"}

    def test_a_blob_is_held_against_its_name_on_a_single_node(self) -> None:
        name = "blobs/" + "a" * 64
        (fault,) = faults({"a": Seen(Tree((TreeFile(name, 1, "b" * 64),), {}), {})})
        assert fault.path == name

    def test_what_is_absent(self) -> None:
        linked = Seen(Tree((TreeFile("x", 1, "1"),), {"l": "x"}), {})
        bare = Seen(tree(), {}, ("model-2.safetensors",))
        found = faults({"a": linked, "b": bare, "c": Seen(None, {})})
        assert {(fault.node, fault.path) for fault in found} == {
            ("c", ""),
            ("b", "model-2.safetensors"),
            ("b", "x"),
            ("b", "l"),
        }


class TestPlaces:
    def test_a_path_is_the_same_on_every_node(self) -> None:
        spec = spec_of("gpu01", "gpu02", model_dirs=("/models", "/more"))
        expected = Place("llama", {"gpu01": "/models", "gpu02": "/models"})
        assert place_of(spec, HOMES, "/home/me/llama") == expected
        assert place_of(spec, HOMES, "llama") == expected
        assert place_of(spec, HOMES, "/more/llama").path("gpu02") == "/more/llama"
        assert place_of(spec, HOMES, "/x/llama", to="/data/l3").paths == ("/data/l3",)

    def test_a_hub_model_lies_in_each_logins_cache(self) -> None:
        found = place_of(spec_of("gpu01", "gpu02"), HOMES, "meta-llama/Llama-3.1-8B")
        assert found.keep
        assert found.paths == (
            "/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B",
            "/home/ml/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B",
        )
        shared = place_of(spec_of("gpu01", hf_home="/data/hf"), HOMES, "a/b")
        assert shared.paths == ("/data/hf/hub/models--a--b",)

    def test_without_model_dirs_the_place_is_asked_for(self) -> None:
        with pytest.raises(ConfigError, match="no model_dirs"):
            place_of(spec_of("gpu01"), HOMES, "/home/me/llama")

    @pytest.mark.parametrize("to", ["models/x", "/", "/models/.."])
    def test_a_place_that_is_none_is_refused(self, to: str) -> None:
        with pytest.raises(ConfigError, match="no absolute path"):
            place_of(spec_of("gpu01"), HOMES, "/x/llama", to=to)

    def test_what_is_not_here_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="neither a directory here nor a model in /no/hub"):
            local_path("org/none", {"HF_HUB_CACHE": "/no/hub"})


def test_a_host_that_was_never_reached_stands_beside_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = Unreachable("nothing listens at 10.0.0.2:22", host="gpu02", hint="start sshd")
    arrivals = {
        "gpu01": Arrival("gpu01", "copied", received=140 * GB, sent=70 * GB),
        "gpu02": Arrival("gpu02", "failed", error=lost),
    }
    with pytest.raises(typer.Exit) as ended:
        show_pushed(Pushed(Place("m", {"gpu01": "/models"}), 140 * GB, arrivals), as_json=False)
    assert ended.value.exit_code == 3
    shown = capsys.readouterr()
    assert shown.out == (
        "NODE   STATE   RECEIVED  PASSED ON  PATH\n"
        "gpu01  copied  140 GB    70.0 GB    /models/m\n"
        "gpu02  failed  0 B       0 B        -\n"
    )
    assert shown.err == "error: gpu02: nothing listens at 10.0.0.2:22\nfix: start sshd\n"


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    meter = Meter()
    assert meter.feed(0, 1000 * 10**6, now=0.0) == ""
    assert meter.feed(100 * 10**6, 1000 * 10**6, now=1.0) == "100 MB/s, 0:09 left"
    for second in range(2, 12):
        said = meter.feed((100 + 10 * second) * 10**6, 1000 * 10**6, now=float(second))
    assert said == "11.0 MB/s, 1:12 left"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (140 * GB, "140 GB"), (2000 * GB, "2.0 TB")],
)
def test_sizes_are_short(size: int, text: str) -> None:
    assert size_text(size) == text
