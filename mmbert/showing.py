"""Text as it may be shown in a terminal or a log: without secrets and without control characters."""

from __future__ import annotations

import os
import re

_SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|SECRET|SECRET_KEY|SECRET_ACCESS_KEY|API_KEY|FERNET_KEY)$")
# Shorter ones would black out ordinary words.
_SHORTEST_SECRET = 6
_PATTERNS = (
    # The login in an address.
    (re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"), "***"),
    # What makes a presigned address work.
    (
        re.compile(
            r"(?i)((?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig)=)[^&\s'\"]+",
        ),
        r"\1***",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "hf_***"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer)\s+)[^\s'\",}]+"), r"\1***"),
)
# Those that move a terminal's cursor, change its colours or write what looks like another line; those that turn the
# direction of text around.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """`text` with secrets (values of variables like HF_TOKEN, logins in addresses, signatures) as `***`, and control
    characters written out. Applied twice it changes nothing more."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _secrets() -> list[str]:
    found = {
        value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET
    }
    # The longest first: one may hold another.
    return sorted(found, key=len, reverse=True)
