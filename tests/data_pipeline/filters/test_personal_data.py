import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.filters.document import Document
from data_pipeline.filters.personal_data import personal_data
from data_pipeline.filters.settings import PersonalData

TOKENS = {"mail_address": "<M>", "phone_number": "<P>", "ip_address": "<I>"}


def replaced(text, **settings):
    return personal_data(Document(text), PersonalData(**{**TOKENS, **settings}))


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("write to jo.doe+x@mail.example.org, or not", "write to <M>, or not"),
        ("<jo@example.com>", "<<M>>"),
        ("mailto:jo@example.com?subject=x", "mailto:<M>?subject=x"),
        ("müller@bücher.de", "<M>"),
        ("@decorator and a@b and user@host and x @ y.com", None),
        ("git@github.com:org/repo.git", "<M>:org/repo.git"),
        ("from 93.184.216.34 to 192.168.0.1 and 127.0.0.1", "from <I> to 192.168.0.1 and 127.0.0.1"),
        ("2001:4860:4860::8888 but fe80::1, ::1 and std::vector, a::b", "<I> but fe80::1, ::1 and std::vector, a::b"),
        ("section 1.2.3.4.5, 9.2.1.1. API, 31.31.31.31, 999.1.1.1, v93.184.216.34", None),
        ("call +49 30 1234567 or +1 (555) 123-4567.", "call <P> or <P>."),
        ("(555) 234-5678, 555-234-5678, 555.234.5678", "<P>, <P>, <P>"),
        ("Tel.: 030 1234567, Fax 030/12 34 56-7", "Tel.: <P>, Fax <P>"),
        ("telephone: 0301234567", "telephone: <P>"),
        ("in 2024-11-26 at 12:34:56, ISBN 978-3-16-148410-0, 1,000,000 and 3.14159265", None),
        ("id 5552345678 and 123-45-6789 and 10-20-3000", None),
        ("x = +1 + 2, +12 -3456789012345678901, +2147483647", None),
        ("+491701234567", "<P>"),
    ],
)
def test_what_is_replaced_and_what_stays(text, after):
    assert replaced(text).text == (text if after is None else after)


def test_replacements_are_counted_by_kind():
    text = "a@example.org, b@example.org, 93.184.216.34, +49 30 1234567"
    assert replaced(text).changes == {"mail_addresses": 2, "ip_addresses": 1, "phone_numbers": 1}
    assert replaced("nothing").changes == {}


def test_an_empty_token_leaves_what_it_stands_for():
    text = "a@example.org 93.184.216.34 +49 30 1234567"
    assert replaced(text, **dict.fromkeys(TOKENS)).text == text
    assert replaced(text, mail_address=None).text == "a@example.org <I> <P>"


def test_tokens_are_taken_letter_by_letter():
    assert replaced("a@example.org", mail_address=r"\1\g<0>").text == r"\1\g<0>"


@given(st.text(alphabet="a@.1:+-() \n\u4e2d", max_size=80))
def test_a_second_time_nothing_is_left_to_replace(text):
    once = replaced(text)
    assert replaced(once.text, mail_address="<M>").text == once.text
