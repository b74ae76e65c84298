"""The kinds of tokenizers that people have, each behind `data_pipeline.tokenizer.Tokenizer`."""
