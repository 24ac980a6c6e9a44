"""How often the log diagnosis is right: `python -m tests.eval_logs DIR` over NNN.log + NNN.json."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from clusterctl.doctor.logs import diagnose

WANTED = 0.95


def main(directory: str) -> int:
    """Exit code 1 under 95 % of the failures, or for a finding on a healthy log."""
    right: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    table: dict[str, Counter[str]] = defaultdict(Counter)
    false_alarms = 0
    for record in sorted(Path(directory).rglob("*.json")):
        truth = json.loads(record.read_text())
        found = diagnose([str(record.with_suffix(".log"))])
        said = (found[0].cause or "unknown") if found else "healthy"
        cause = truth["root_cause"]
        table[cause][said] += 1
        if cause == "healthy":
            false_alarms += said != "healthy"
        else:
            cases[truth["category"]] += 1
            right[truth["category"]] += said == cause
        if said != cause:
            print(f"miss {truth['id']}: {cause} read as {said}")
    for cause, answers in sorted(table.items()):
        print(f"{cause:36} {', '.join(f'{one} {n}' for one, n in answers.items())}")
    for category in sorted(cases):
        print(f"{category:36} {right[category]}/{cases[category]}")
    total, correct = sum(cases.values()), sum(right.values())
    print(f"failures right: {correct}/{total}; false alarms on healthy logs: {false_alarms}")
    return int(correct < WANTED * total or false_alarms > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
