"""What a report, which others read, must not tell."""

import re


def without_password(target: str) -> str:
    """Return a target of ``--conformance``, where it is a URL, with its password replaced by three asterisks."""
    hidden = re.sub(r"(?<=://)([^:/?#]*):.*@", r"\1:***@", target)
    return re.sub(r"([?&](?:ssl)?password=)[^&#]*", r"\1***", hidden)
