"""Small documents for objectives, and ways to read what becomes of them."""

import numpy as np

from data_pipeline.flags import packed_flags
from data_pipeline.reading.dataset import Documents
from data_pipeline.vocabulary import Vocabulary

SIZE = 1000
SENTINEL, NUM_SENTINELS = 10, 300
FIRST_TEXT = SENTINEL + NUM_SENTINELS
SPECIAL = {"unk": 0, "pad": 3, "mask": 4, "cls": 5, "sep": 6, "R": 7, "S": 8, "X": 9}
BOS, EOS = 1, 2
# every third piece of text begins a word, every fifth ends one
_NUMBERS = np.arange(SIZE)
VOCABULARY = Vocabulary(
    SIZE,
    BOS,
    EOS,
    SPECIAL,
    SENTINEL,
    NUM_SENTINELS,
    packed_flags(_NUMBERS % 3 == 0),
    packed_flags(_NUMBERS % 5 == 0),
)


def text(length, first=0):
    """Tokens of text that count on, so that every place has its own as long as there are fewer than some 700."""
    return (FIRST_TEXT + (first + np.arange(length)) % (SIZE - FIRST_TEXT)).tolist()


def piece(length, has_bos=False, has_eos=False, first=0):
    """A piece of a document with `length` tokens of content."""
    return [BOS] * has_bos + text(length, first) + [EOS] * has_eos


def documents(pieces, num_pieces=None):
    """Pieces, lists of tokens, as documents of one sample or of several."""
    lengths = np.array([len(tokens) for tokens in pieces], np.int64)
    tokens = np.concatenate([np.zeros(0, np.uint16), *(np.array(tokens, np.uint16) for tokens in pieces)])
    num_pieces = np.array([len(pieces)] if num_pieces is None else num_pieces, np.int64)
    return Documents(tokens, lengths, np.zeros(len(lengths), bool), num_pieces)


def keys(count, seed=0):
    """Keys of so many pieces."""
    return np.random.default_rng(seed).integers(0, 2**63, count).astype(np.uint64)


def rows(ragged):
    """The rows of a Ragged as lists."""
    return [part.tolist() for part in np.split(ragged.tokens, np.cumsum(ragged.lengths))[:-1]]


def flags(examples):
    """Which targets of each example are scored, as lists."""
    scored = examples.scored if examples.scored is not None else np.ones(len(examples.targets.tokens), bool)
    return [part.tolist() for part in np.split(scored, np.cumsum(examples.targets.lengths))[:-1]]


def is_sentinel(token):
    """Whether a token stands for a hidden span."""
    return SENTINEL <= token < FIRST_TEXT


def restored(inputs, targets):
    """Content of the text of which `inputs` and `targets` were made by hiding spans."""
    hidden, current = {}, None
    for token in targets:
        if is_sentinel(token):
            current = hidden.setdefault(token, [])
        elif token != EOS:
            current.append(token)
    text = []
    for token in inputs:
        if is_sentinel(token):
            text += hidden.pop(token)
        elif token >= FIRST_TEXT:
            text.append(token)
    assert not hidden
    return text
