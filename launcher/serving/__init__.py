"""Converted models at work: loaded safely, written by in batches, asked over HTTP.

folder -> loaded.py -> writing.py (decoders, encoder-decoders), filling.py (encoders)
`shardline generate` calls these; `shardline serve` does behind a queue (worker.py) and OpenAI's interface (api.py)
"""
