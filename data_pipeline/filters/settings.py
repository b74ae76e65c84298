"""The thresholds of filters: the entries of `data.filters` in a config file.

An entry is a name (`c4`) or a section (`{name: c4, min_sentences: 3}`). Defaults are those of the papers; an empty
threshold switches its rule off.
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from common.mistakes import Mistake, shown
from common.section import Place, Section
from data_pipeline.filters.languages import LANGUAGES, nearest_language

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**40)]
Ratio = Annotated[float, Field(ge=0, le=2**40)]


class GopherQuality(Section):
    """Rae et al., arXiv 2112.11446, appendix A.1.1, "Quality filtering"; its stop words are English."""

    name: Literal["gopher_quality"] = "gopher_quality"
    """Which filter it is."""
    min_words: Count | None = 50
    """Words, without those that are punctuation or symbols; `few_words`."""
    max_words: Count | None = 100_000
    """As before; `many_words`."""
    min_mean_word_length: Ratio | None = 3.0
    """Characters of a word on average; `short_words`."""
    max_mean_word_length: Ratio | None = 10.0
    """As before; `long_words`."""
    max_symbols_per_word: Ratio | None = 0.1
    """Number signs, and ellipses, for each word (punctuation counts as words); `hashes`, `ellipses`."""
    max_bullet_lines: Share | None = 0.9
    """Lines that begin with a bullet point; `bullet_lines`."""
    max_ellipsis_lines: Share | None = 0.3
    """Lines that end with an ellipsis; `ellipsis_lines`."""
    min_alphabetic_words: Share | None = 0.8
    """Words with a letter (punctuation counts as words); `alphabetic_words`."""
    min_stop_words: Count | None = 2
    """Different words among the, be, to, of, and, that, have, with; `stop_words`."""


class GopherRepetition(Section):
    """Rae et al., arXiv 2112.11446, table A1; shares of characters are of all characters of the document."""

    name: Literal["gopher_repetition"] = "gopher_repetition"
    """Which filter it is."""
    max_repeated_lines: Share | None = 0.3
    """Lines that were there before; `repeated_lines`."""
    max_repeated_paragraphs: Share | None = 0.3
    """Paragraphs (blank lines between them) that were there before; `repeated_paragraphs`."""
    max_characters_in_repeated_lines: Share | None = 0.2
    """Characters of such lines; `characters_in_repeated_lines`."""
    max_characters_in_repeated_paragraphs: Share | None = 0.2
    """Characters of such paragraphs; `characters_in_repeated_paragraphs`."""
    max_top_2_gram: Share | None = 0.20
    """Characters of the 2 words in a row that come most often; `top_2_gram`."""
    max_top_3_gram: Share | None = 0.18
    """The same of 3 words; `top_3_gram`."""
    max_top_4_gram: Share | None = 0.16
    """The same of 4 words; `top_4_gram`."""
    max_repeated_5_grams: Share | None = 0.15
    """Characters of 5 words in a row that were there before, none counted twice; `repeated_5_grams`."""
    max_repeated_6_grams: Share | None = 0.14
    """The same of 6 words; `repeated_6_grams`."""
    max_repeated_7_grams: Share | None = 0.13
    """The same of 7 words; `repeated_7_grams`."""
    max_repeated_8_grams: Share | None = 0.12
    """The same of 8 words; `repeated_8_grams`."""
    max_repeated_9_grams: Share | None = 0.11
    """The same of 9 words; `repeated_9_grams`."""
    max_repeated_10_grams: Share | None = 0.10
    """The same of 10 words; `repeated_10_grams`."""


class C4(Section):
    """Raffel et al., arXiv 1910.10683, section 2.2, as the paper's own code does it; bad words are not looked for."""

    name: Literal["c4"] = "c4"
    """Which filter it is."""
    terminal_punctuation: bool = True
    """Only lines that end with . ! ? or a quotation mark stay, and not those that end with an ellipsis."""
    min_words_per_line: Count | None = 3
    """Only lines of so many words (between blanks) stay."""
    max_word_length: Count | None = 1000
    """Lines with a longer word go."""
    javascript: bool = True
    """Lines with the word Javascript go."""
    policies: bool = True
    """Lines that speak of cookies, terms of use or a privacy policy go."""
    citations: bool = True
    """Marks such as [1], [edit] and [citation needed] are taken out of lines."""
    lorem_ipsum: bool = True
    """Documents with that phrase in a line that stays are dropped; `lorem_ipsum`."""
    curly_brackets: bool = True
    """Documents with a { in a line that stays are dropped; `curly_bracket`."""
    min_sentences: Count | None = 5
    """Documents with fewer sentences in the lines that stay are dropped; `few_sentences`."""


class FineWeb(Section):
    """Penedo et al., arXiv 2406.17557, section 3.6; lines without a visible character do not count."""

    name: Literal["fineweb"] = "fineweb"
    """Which filter it is."""
    min_punctuated_lines: Share | None = 0.12
    """Lines that end with what ends a sentence in any script; `punctuated_lines`."""
    max_short_lines: Share | None = 0.67
    """Lines of at most `short_line` characters; `short_lines`."""
    short_line: Count = 30
    """Characters of a line that is short."""
    max_characters_in_repeated_lines: Share | None = 0.1
    """Characters of lines that were there before, of all but line feeds; `repeated_lines`. FineWeb's code has 0.01."""
    max_line_feeds_per_word: Ratio | None = None
    """Line feeds for each word (punctuation counts as words); not in the paper, FineWeb's code has 0.3; `list`."""


class Language(Section):
    """The language of a document by fastText's lid.176.ftz (arXiv 1607.01759), on 2,000 characters of its middle."""

    name: Literal["language"] = "language"
    """Which filter it is."""
    keep: list[str] = Field(min_length=1)
    """Codes of languages that stay (ISO 639), such as en, de; others are dropped by their code, as `fr`."""
    min_score: Share = 0.65
    """Least probability of that language, FineWeb's (arXiv 2406.17557, section 3.3); `uncertain`."""

    @model_validator(mode="after")
    def _are_languages(self):
        for place, code in enumerate(self.keep):
            if code not in LANGUAGES:
                hint = nearest_language(code)
                raise Mistake(
                    f"keep[{place}]: {shown(code)} is no language the model knows; "
                    f"{hint or 'it takes codes such as en, de, zh: docs/data.md has all of them'}"
                )
        return self


class Characters(Section):
    """Length, and what a text is made of; shares are of all characters that are not blank."""

    name: Literal["characters"] = "characters"
    """Which filter it is."""
    min_length: Count | None = None
    """Characters of the document; `short`."""
    max_length: Count | None = None
    """As before; `long`."""
    min_letters: Share | None = 0.5
    """Letters and marks of any script; `letters`."""
    max_digits: Share | None = 0.3
    """Digits and other numbers; `digits`."""
    max_symbols: Share | None = 0.4
    """Punctuation, symbols and the rest; `symbols`."""
    max_blanks: Share | None = None
    """Blanks and line ends, of all characters; `blanks`."""
    min_mean_word_length: Ratio | None = None
    """Characters of a word on average, without punctuation; `short_words`."""
    max_mean_word_length: Ratio | None = None
    """As before; `long_words`."""


class PersonalData(Section):
    """Mail addresses, phone numbers and public IP addresses replaced; tokens as in Dolma (arXiv 2402.00159).

    An empty token leaves what it would stand for. Documents are never dropped.
    """

    name: Literal["personal_data"] = "personal_data"
    """Which filter it is."""
    mail_address: str | None = "|||EMAIL_ADDRESS|||"
    """What stands for a mail address."""
    phone_number: str | None = "|||PHONE_NUMBER|||"
    """What stands for a phone number."""
    ip_address: str | None = "|||IP_ADDRESS|||"
    """What stands for an IPv4 or IPv6 address that anybody can reach; private ones stay."""


class Decontaminate(Section):
    """Overlap with evaluation sets: Brown et al., arXiv 2005.14165, appendix C; documents are dropped whole."""

    name: Literal["decontaminate"] = "decontaminate"
    """Which filter it is."""
    files: list[Place] = Field(min_length=1)
    """Files of questions, those that `shardline evaluate --task` takes."""
    ngram: int = Field(default=13, ge=2, le=100)
    """So many words in a row, in small letters and without punctuation, are the overlap; `overlap`."""
    min_words: int = Field(default=8, ge=1, le=100)
    """Questions of fewer words than `ngram`, but so many at least, are looked for whole."""


FILTERS: dict[str, type[Section]] = {
    str(kind.model_fields["name"].default): kind
    for kind in (
        GopherQuality,
        GopherRepetition,
        C4,
        FineWeb,
        Language,
        Characters,
        PersonalData,
        Decontaminate,
    )
}
"""All filters, by name."""


def _as_section(entry: Any) -> Any:
    """An entry that is a name as the section it stands for. Raises ValueError when there is no filter of that name."""
    section = {"name": entry} if isinstance(entry, str) else entry
    if isinstance(section, dict) and section.get("name") not in list(
        FILTERS
    ):  # which may be anything, also what has no hash
        found = section.get("name")
        nearest = difflib.get_close_matches(str(found), FILTERS, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(FILTERS)}"
        raise Mistake(f"name: {shown(found)} is no filter; {hint}")
    return section


FilterSettings = Annotated[
    Annotated[
        GopherQuality | GopherRepetition | C4 | FineWeb | Language | Characters | PersonalData | Decontaminate,
        Field(discriminator="name"),
    ],
    BeforeValidator(_as_section),
]
"""One entry of `data.filters`."""
FilterList = TypeAdapter(list[FilterSettings])
"""All of them, to and from JSON."""
