"""Replaces mail addresses, phone numbers and public IP addresses by tokens.

What looks like an address and is none that anybody can reach (10.0.0.1, ::1) stays, and so do four small numbers,
which are sections and versions far more often (9.2.1.1). Phone numbers are those with a
country code (+49 30 1234567), with an American area code (555-123-4567), and whatever stands behind a word such as
Tel. or Fax; digits alone are never taken for one.

Every pattern begins with characters that are rare in text, and only then looks at what stands before them: that is
what lets the matcher skip over prose.
"""

import ipaddress
import re
from collections.abc import Callable

from data_pipeline.filters.document import Document
from data_pipeline.filters.settings import PersonalData

MAIL_HOST = re.compile(r"@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,}(?![\w@])")
MAIL_NAME = re.compile(r"(?<![\w.+%-])[\w+%-]+(?:\.[\w+%-]+)*$")
LONGEST_NAME = 64
"""Characters in front of the @ (RFC 5321, section 4.5.3.1.1)."""
IPV4 = re.compile(r"\d(?<![\w.].)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\w]|\.\d)", re.ASCII)
IPV6 = re.compile(
    r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:]*:[0-9A-Fa-f]*(?:(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])", re.A
)
"""Addresses of the range that is given out, 2000::/3; others that look like one are code (`a::b`)."""
_ALONE, _ENDS = r"(?<![\w.,/+()-].)", r"(?![\w]|[.,/-]\d)"
INTERNATIONAL = re.compile(
    rf"\+{_ALONE}\d{{1,3}}[ .-]?(?:\(\d{{1,4}}\)[ .-]?)?\d{{1,4}}(?:[ ./-]?\d{{2,4}}){{1,5}}{_ENDS}", re.ASCII
)
AMERICAN = re.compile(
    rf"""[(1-9]{_ALONE}
    (?:(?<=1)[ .-](?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[-.])|(?<=\()[2-9]\d\d\)[ ]?|(?<=[2-9])\d\d[-.])
    [2-9]\d\d[-.]\d{{4}}{_ENDS}""",
    re.ASCII | re.VERBOSE,
)
NUMBER = re.compile(rf"[(+\d](?<![\w,/+()-].)[\d ()./-]{{5,21}}\d{_ENDS}", re.ASCII)
LABEL = re.compile(r"\b(?:tel|telefon|telephone|phone|fax|mobil|mobile|handy|call)\b[.:]*[ ]{0,2}$", re.I)
LONGEST_LABEL = 16
"""Characters in which a label stands before a number."""
LEAST_DIGITS, MOST_DIGITS = 7, 15
"""Digits of a phone number (ITU-T E.164 allows 15)."""
LEAST_IN_A_ROW = 11
"""Digits of one with a country code and nothing between them: fewer are as likely a signed number."""
SMALL_NUMBER = 32
"""One number of an IPv4 address is not below this; of all addresses one in 4,096 is missed by that."""


def personal_data(document: Document, settings: PersonalData) -> Document:
    """The document with tokens in place of personal data."""
    text, changes = document.text, {}
    if settings.mail_address is not None:
        text, changes["mail_addresses"] = _without_mail(text, settings.mail_address)
    if settings.ip_address is not None:
        text, num_old = _replaced(IPV4, text, settings.ip_address, _is_public)
        text, num_new = _replaced(IPV6, text, settings.ip_address, _is_public)
        changes["ip_addresses"] = num_old + num_new
    if settings.phone_number is not None:
        text, num_abroad = _replaced(INTERNATIONAL, text, settings.phone_number, _is_international)
        text, num_american = _replaced(AMERICAN, text, settings.phone_number, _is_phone_number)
        text, num_labelled = _replaced(NUMBER, text, settings.phone_number, _is_labelled)
        changes["phone_numbers"] = num_abroad + num_american + num_labelled
    return document.with_text(text, {name: count for name, count in changes.items() if count})


def _without_mail(text: str, token: str) -> tuple[str, int]:
    """Goes from @ to @, since there are few, and looks for a name in front of each."""
    parts: list[str] = []
    end = 0
    for host in MAIL_HOST.finditer(text):
        name = MAIL_NAME.search(text, max(host.start() - LONGEST_NAME, end), host.start())
        if name:
            parts += text[end : name.start()], token
            end = host.end()
    return "".join([*parts, text[end:]]), len(parts) // 2


def _replaced(
    pattern: re.Pattern[str], text: str, token: str, is_meant: Callable[[re.Match[str]], bool]
) -> tuple[str, int]:
    """The text with each match that is meant replaced, and how many there were."""
    count = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal count
        if not is_meant(match):
            return match[0]
        count += 1
        return token

    return pattern.sub(replacement, text), count


def _is_public(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    return address.is_global and (address.version == 6 or max(address.packed) >= SMALL_NUMBER)


def _is_international(match: re.Match[str]) -> bool:
    return _is_phone_number(match) and (len(match[0]) > LEAST_IN_A_ROW or not match[0][1:].isdigit())


def _is_phone_number(match: re.Match[str]) -> bool:
    return LEAST_DIGITS <= sum(map(str.isdigit, match[0])) <= MOST_DIGITS


def _is_labelled(match: re.Match[str]) -> bool:
    start = match.start()
    label = LABEL.search(match.string, max(start - LONGEST_LABEL, 0), start)
    return label is not None and _is_phone_number(match)
