"""FineWeb's own rules on lines (Penedo et al., arXiv 2406.17557, section 3.6)."""

from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.gopher import outside, repeated
from data_pipeline.filters.settings import FineWeb

SENTENCE_TERMINALS = """
    21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D5
    1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 2024 203C-203D 2047-2049
    2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F
    AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048
    110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 1144B-1144C
    115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8
    11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88
"""
"""Characters with Unicode's property Sentence_Terminal, and ranges of them."""


def _expanded(ranges: str) -> frozenset[str]:
    ends = (part.split("-") for part in ranges.split())
    return frozenset(chr(code) for pair in ends for code in range(int(pair[0], 16), int(pair[-1], 16) + 1))


TERMINALS = _expanded(SENTENCE_TERMINALS)


def fineweb(document: Document, settings: FineWeb) -> Document | Dropped:
    """Drops lists, menus and tables: lines without an end, short ones, repeated ones."""
    reason = _reason(document, settings)
    return Dropped(reason) if reason else document


def _reason(document: Document, settings: FineWeb) -> str | None:
    text = document.text
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return "empty"
    if outside(sum(line[-1] in TERMINALS for line in lines) / len(lines), settings.min_punctuated_lines):
        return "punctuated_lines"
    if outside(sum(len(line) <= settings.short_line for line in lines) / len(lines), most=settings.max_short_lines):
        return "short_lines"
    num_feeds = text.count("\n")
    if outside(repeated(lines)[1] / (len(text) - num_feeds), most=settings.max_characters_in_repeated_lines):
        return "repeated_lines"
    most = settings.max_line_feeds_per_word
    return "list" if most is not None and num_feeds / len(document.words.texts) > most else None
