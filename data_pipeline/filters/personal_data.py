"""Replaces mail addresses, phone numbers and public IP addresses by tokens.

What looks like an address and is none that anybody can reach (10.0.0.1, ::1) stays. Phone numbers are those with a
country code (+49 30 1234567), with an American area code (555-123-4567), and whatever stands behind a word such as
Tel. or Fax; digits alone are never taken for one.
"""

import ipaddress
import re
from collections.abc import Callable

from data_pipeline.filters.document import Document
from data_pipeline.filters.settings import PersonalData

MAIL = re.compile(r"(?<![\w.+%-])[\w+%-]+(?:\.[\w+%-]+)*@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,}(?![\w@])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
IPV6 = re.compile(
    r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]*:[0-9A-Fa-f]*(?:(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])", re.ASCII
)
"""Addresses of the range that is given out, 2000::/3; others that look like one are code (`a::b`)."""
PHONE = re.compile(
    r"""(?<![\w.,/+()-])(?:
        \+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ ./-]?\d{2,4}){1,5}  # with a country code
        |(?:1[ .-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[-.])[2-9]\d\d[-.]\d{4}      # with an American area code
    )(?![\w]|[.,/-]\d)""",
    re.ASCII | re.VERBOSE,
)
LABELLED = re.compile(
    r"(?i:\b(?:tel|telefon|telephone|phone|fax|mobil|mobile|handy|call)\b[.:]*[ ]{0,2})"
    r"(\(?\+?\d[\d ()./-]{4,20}\d)(?![\w]|[.,/-]\d)",
    re.ASCII,
)
LEAST_DIGITS, MOST_DIGITS = 7, 15
"""Digits of a phone number (ITU-T E.164 allows 15)."""


def personal_data(document: Document, settings: PersonalData) -> Document:
    """The document with tokens in place of personal data."""
    text = document.text
    changes: dict[str, int] = {}
    if settings.mail_address is not None and "@" in text:
        text, count = MAIL.subn(lambda match: settings.mail_address or "", text)
        changes["mail_addresses"] = count
    if settings.ip_address is not None:
        for pattern in (IPV4, IPV6) if "::" in text or ":" in text else (IPV4,):
            text, count = _replaced(pattern, text, settings.ip_address, _is_public)
            changes["ip_addresses"] = changes.get("ip_addresses", 0) + count
    if settings.phone_number is not None:
        for pattern in (PHONE, LABELLED):
            text, count = _replaced(pattern, text, settings.phone_number, _is_phone_number)
            changes["phone_numbers"] = changes.get("phone_numbers", 0) + count
    return document.with_text(text, {name: count for name, count in changes.items() if count})


def _replaced(pattern: re.Pattern[str], text: str, token: str, is_meant: Callable[[str], bool]) -> tuple[str, int]:
    """The text with the last group of each match that is meant, or the whole match, replaced; how many there were."""
    count = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal count
        found = match[pattern.groups]
        if not is_meant(found):
            return match[0]
        count += 1
        return match[0].removesuffix(found) + token

    return pattern.sub(replacement, text), count


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_phone_number(found: str) -> bool:
    return LEAST_DIGITS <= sum(map(str.isdigit, found)) <= MOST_DIGITS
