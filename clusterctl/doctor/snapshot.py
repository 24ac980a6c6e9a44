"""What was seen of a cluster, kept: `--save` writes it, `--from` judges it again without hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from clusterctl import __version__
from clusterctl.config import spec_from_dict, spec_to_dict
from clusterctl.doctor.check import Finding
from clusterctl.doctor.checks import judge
from clusterctl.doctor.redaction import redact
from clusterctl.doctor.subject import Plan
from clusterctl.errors import ConfigError
from clusterctl.facts.types import HostFacts
from clusterctl.spec import ClusterSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """`told`: findings of looking itself (hosts that did not answer, ways between them), which
    cannot be judged again."""

    spec: ClusterSpec
    facts: Mapping[str, HostFacts]
    told: tuple[Finding, ...] = ()
    plan: Plan | None = None

    @property
    def findings(self) -> list[Finding]:
        return [*self.told, *judge(self.spec, self.facts, plan=self.plan)]


@dataclass(frozen=True)
class _Saved:
    schema_version: int
    clusterctl: str
    spec: dict[str, object]
    facts: dict[str, HostFacts]
    told: tuple[Finding, ...]
    plan: Plan | None = None


def to_json(snapshot: Snapshot) -> str:
    """Without any secret that its values may hold."""
    saved = _Saved(
        SCHEMA_VERSION,
        __version__,
        spec_to_dict(snapshot.spec),
        dict(snapshot.facts),
        snapshot.told,
        snapshot.plan,
    )
    return redact(TypeAdapter(_Saved).dump_json(saved, indent=1).decode())


def load(file: Path) -> Snapshot:
    """Raises ConfigError on a file that is not there or holds something else."""
    try:
        saved = TypeAdapter(_Saved).validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{file} is no snapshot: {where or 'the file'}: {first['msg']}",
            hint="clusterctl doctor --save FILE writes one",
        ) from error
    if saved.schema_version != SCHEMA_VERSION:
        raise ConfigError(f"{file} is of schema {saved.schema_version}, not {SCHEMA_VERSION}")
    return Snapshot(spec_from_dict(saved.spec), saved.facts, saved.told, saved.plan)
