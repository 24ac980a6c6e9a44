"""Many probes in one shell script, and its one output taken apart again.

    @@clusterctl begin NAME
    ...stdout...
    @@clusterctl stderr
    ...stderr...
    @@clusterctl end EXIT_CODE

Text before, between and after sections (a greeting of the login shell) is ignored.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from clusterctl.errors import ClusterctlError

TIMED_OUT = 124  # what timeout(1) exits with
NOT_FOUND = 127  # what a shell says of a command that is not there
PROBE_TIMEOUT_S = 15

_MARK = "@@clusterctl"

# Each probe runs in a shell of its own, so that none can end, block or starve the others.
_PRELUDE = f"""\
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
export PATH LC_ALL
limit=
if command -v timeout >/dev/null 2>&1; then limit='timeout {PROBE_TIMEOUT_S}'; fi
probe() {{
  printf '\\n{_MARK} begin %s\\n' "$1"
  {{ err=$($limit sh -c "$2" 2>&1 1>&3 3>&- </dev/null); rc=$?; }} 3>&1
  printf '\\n{_MARK} stderr\\n%s\\n{_MARK} end %s\\n' "$err" "$rc"
}}
"""

_SECTION = re.compile(
    rf"^{_MARK} begin (?P<name>\w+)\n(?P<stdout>.*?)\n{_MARK} stderr\n"
    rf"(?P<stderr>.*?)\n{_MARK} end (?P<exit_code>\d+)$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Section:
    """What one probe left."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int = NOT_FOUND

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def text(self) -> str | None:
        """stdout without blanks around it; None when the probe failed or said nothing."""
        return (self.stdout.strip() or None) if self.ok else None

    @property
    def complaint(self) -> str:
        """Why it failed, in the tool's own words and one line."""
        if self.exit_code == TIMED_OUT:
            return f"no answer within {PROBE_TIMEOUT_S} s"
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return " ".join(lines[:3]) or f"exited {self.exit_code}"


def script(probes: Mapping[str, str], variables: Mapping[str, str]) -> str:
    """One POSIX sh script of all probes (name -> shell text); `variables` are exported to them."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    calls = [f"probe {name} {shlex.quote(text.strip())}" for name, text in probes.items()]
    return "\n".join([_PRELUDE, *exports, *calls, "exit 0", ""])


def split(text: str) -> dict[str, Section]:
    """Sections by name."""
    return {
        match["name"]: Section(match["stdout"], match["stderr"], int(match["exit_code"]))
        for match in _SECTION.finditer(text.replace("\r\n", "\n"))
    }


def require(sections: Mapping[str, Section], names: Mapping[str, str], *, host: str) -> None:
    """Raises ClusterctlError when the host's answer ended before its last section."""
    missing = [name for name in names if name not in sections]
    if missing:
        raise ClusterctlError(
            f"the host's answer about itself ends before {missing[0]!r}",
            host=host,
            hint=f"does `ssh {host} sh -s` run a POSIX shell there?",
        )
