"""Rules that say which documents are worth training on, each named after the paper it is from.

    text -> Document -> filter 1 -> filter 2 -> ... -> Document, whose text a filter may have changed, or Dropped

A filter is a pure function of one document. `settings` holds their thresholds, `chain` their names and their order,
`document` what several of them ask of a text. Nothing here knows of files, tasks or tokenizers, except `decontaminate`,
which reads the questions of an evaluation.
"""
