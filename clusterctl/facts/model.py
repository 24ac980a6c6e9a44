"""The model that is to be served, as this host has it: a directory, or in the Hub's cache."""

from __future__ import annotations

from collections.abc import Mapping

from clusterctl.facts.sections import Section
from clusterctl.facts.types import ModelFacts, ModelFile

MODEL, HF_HOME, DIRECTORIES = "MODEL", "HF_HOME_ASKED", "DIRECTORIES"  # variables of the probes

# A safetensors file opens with the length of a JSON header, whose largest data offset says how long
# the rest must be: a copy that was cut off shows without reading the weights.
PROBES: Mapping[str, str] = {
    "hf_home": """
h=${HF_HOME_ASKED:-${HF_HOME:-$HOME/.cache/huggingface}}
echo "$h"
if [ -n "$HF_TOKEN" ] || [ -s "${HF_TOKEN_PATH:-$h/token}" ]; then echo token; else echo none; fi
while [ ! -d "$h" ]; do h=$(dirname "$h"); done
printf '%s\\t%s\\n' "$(df -Pk "$h" | tail -n 1)" "$(df -Pi "$h" | tail -n 1)"
""",
    "directories": """
printf '%s\\n' "$DIRECTORIES" | while read -r d; do
  [ -z "$d" ] || [ -d "$d" ] || echo "$d"
done""",
    "model": """
[ -n "$MODEL" ] || exit 3
at=$MODEL
case $MODEL in /*) ;; *)
  h=${HF_HOME_ASKED:-${HF_HOME:-$HOME/.cache/huggingface}}
  h=$h/hub/models--$(printf %s "$MODEL" | sed 's|/|--|')
  at=$(ls -d "$h"/snapshots/*/ 2>/dev/null | tail -n 1)
;; esac
printf 'path\\t%s\\n' "$MODEL"
[ -n "$at" ] && [ -e "$at" ] || exit 0
echo exists
if [ -f "$at" ]; then set -- "$at"
else set -- "$at"/*.json "$at"/*.safetensors "$at"/*.gguf "$at"/tokenizer*.model; fi
for f; do
  [ -f "$f" ] || continue
  printf 'file\\t%s\\t%s\\t' "${f##*/}" "$(stat -L -c %s "$f")"
  case $f in *.safetensors)
    n=$(od -An -tu8 -N8 "$f" | tr -d ' ')
    if [ "${#n}" -gt 0 ] && [ "${#n}" -lt 9 ]; then
      last=$(head -c $((n + 8)) "$f" | tail -c "$n" | tr '}' '\\n' |
        sed -n 's/.*"data_offsets": *\\[[0-9]*, *\\([0-9]*\\)\\].*/\\1/p' | sort -n | tail -n 1)
      [ -n "$last" ] && echo $((n + 8 + last)) || echo 0
    else echo 0; fi ;;
  *) echo ;; esac
done
for f in config.json model.safetensors.index.json; do
  [ -f "$at/$f" ] && printf 'digest\\t%s\\t%s\\n' "$f" "$(sha256sum <"$at/$f" | cut -d' ' -f1)"
done
[ -f "$at/config.json" ] && [ "$(stat -L -c %s "$at/config.json")" -lt 1000000 ] &&
  printf 'config\\t%s\\n' "$(tr '\\t\\n\\r' '   ' <"$at/config.json")"
grep -o '"[^"]*\\.safetensors"' "$at/model.safetensors.index.json" 2>/dev/null |
  sort -u | tr -d '"' |
  while read -r f; do [ -e "$at/$f" ] || printf 'missing\\t%s\\n' "$f"; done
exit 0""",
}


def parse_hf_home(section: Section) -> tuple[str | None, bool | None, str]:
    """Where it is, whether a token lies there (or stands in the environment), the line of its
    disk as host.parse_disks reads it."""
    path, token, disk = [*section.stdout.splitlines(), "", "", ""][:3]
    known = {"token": True, "none": False}.get(token)
    return path or None, known, f"{path}\t{disk}" if disk else ""


def parse_directories(section: Section) -> tuple[str, ...]:
    """Those that were asked for and are not there."""
    return tuple(section.stdout.strip().splitlines())


def parse_model(section: Section) -> ModelFacts | None:
    """None when no model was asked for."""
    rows = [line.split("\t") for line in section.stdout.splitlines()]
    paths = [row[1] for row in rows if row[0] == "path"]
    if not paths:
        return None
    return ModelFacts(
        path=paths[0],
        exists=["exists"] in rows,
        files=tuple(_file(*row[1:]) for row in rows if row[0] == "file"),
        digests=tuple((row[1], row[2]) for row in rows if row[0] == "digest"),
        missing=tuple(row[1] for row in rows if row[0] == "missing"),
        config=next((row[1] for row in rows if row[0] == "config"), None),
    )


def _file(name: str, size: str, declared: str) -> ModelFile:
    return ModelFile(name, int(size), int(declared) if declared else None)
