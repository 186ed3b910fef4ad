"""Keeps passwords and tokens out of what is written down: commands as they were typed, and the URLs of databases."""

import re
import shlex
from itertools import pairwise

HIDDEN = "***"

_SECRET = frozenset(("auth", "token", "password", "passwd", "pwd", "secret", "credential", "credentials", "apikey"))
_USER = re.compile(r"(\w[\w+.-]*://[^\s:/@]*:)[^\s@]*(?=@)")  # user:PASSWORD@
_TOKEN = re.compile(r"(https?://)[^\s:/@]+(?=@)")  # a token in the user's place
_QUERY = re.compile(r"([?&;])([\w.-]+)=([^&;\s'\"]*)")


def masked(command: str) -> str:
    """A command, or any text with URLs in it, without the values of options, settings and URL parts that are secrets."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command: a quote is left open
        return _masked_urls(command)
    shown = [_masked_urls(_masked_value(word)) for word in words]
    for place, word in enumerate(words[:-1]):
        if word.startswith("-") and "=" not in word and is_secret(word) and not words[place + 1].startswith("--"):
            shown[place + 1] = HIDDEN
    return shlex.join(shown) if shown != words else command


def is_secret(name: str) -> bool:
    """Whether what an option or a setting of this name holds should not be written down: `--hf-token`, `store.password`."""
    words = re.split(r"[._-]+", name.lower())
    return not _SECRET.isdisjoint(words) or any(pair in (("api", "key"), ("private", "key")) for pair in pairwise(words))


def _masked_value(word: str) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}={HIDDEN}" if equals and "://" not in name and is_secret(name) else word


def _masked_urls(text: str) -> str:
    if "://" not in text:
        return text
    text = _TOKEN.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}", text))
    return _QUERY.sub(lambda found: f"{found[1]}{found[2]}={HIDDEN if is_secret(found[2]) else found[3]}", text)
