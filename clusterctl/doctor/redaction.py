"""Text without its secrets: what a snapshot or a bundle may show to others. PURE.

A secret is known by the name it stands under, by the form that its issuer gives it, or by its
value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
SHORTEST_VALUE = 6  # a shorter one stands in too many words

_WORDS = r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIALS?|AUTH)"
_NAME = re.compile(rf"(?:^|_){_WORDS}(?:$|_)", re.IGNORECASE)
_NAMED = (
    # "HF_TOKEN": "value"   HF_TOKEN=value   HF_TOKEN: value   --api-key value
    re.compile(rf'("[\w.-]*{_WORDS}[\w.-]*"\s*:\s*")(?:[^"\\]|\\.)+', re.IGNORECASE),
    re.compile(rf"(\b[\w-]*{_WORDS}[\w-]*=[\"']?)[^\s\"',;&\\]+", re.IGNORECASE),
    re.compile(rf"(\b[A-Z0-9_]*{_WORDS}[A-Z0-9_]*:\s+[\"']?)[^\s\"',;]+"),
    re.compile(r"(--(?:api-key|token|password|hf-token)[ \t]+[\"']?)[^\s\"']+"),
    re.compile(r"(\b(?:Bearer|Basic|token)\s+)[A-Za-z0-9+/._~-]{12,}=*", re.IGNORECASE),
    re.compile(r"(://)[^/\s:@\"]+:[^/\s@\"]+(?=@)"),
)
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}|\bgh[opusr]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bAKIA[A-Z0-9]{16}\b|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|\bnvapi-[\w-]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----",
    re.DOTALL,
)


def redact(text: str, values: Iterable[str] = ()) -> str:
    """`values`: secrets that are known, hidden wherever they stand."""
    for value in sorted({v for v in values if len(v) >= SHORTEST_VALUE}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for pattern in _NAMED:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return _FORMS.sub(HIDDEN, text)


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """What stands under names of secrets."""
    return [value for name, value in environment.items() if _NAME.search(name)]
