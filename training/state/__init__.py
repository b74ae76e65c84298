"""The training state on disk, in a format of our own that knows neither ZeRO stages nor ranks nor DeepSpeed.

    engine -> Snapshot (snapshot.py) -> commit (behind.py, saving.py) -> step-00000020/ -> choose (choosing.py)
    step-00000020/  state.json      where the run stands and what it is made of           identity.py
                    index.json      which part holds which elements of which tensor       index.py, boxes.py
                    part-*.safetensors  fp32 weights and moments, one file per writer     parts.py
                    checksums.json  xxh3_128 of exactly these files, and of the list      sums.py

What lies around the checkpoints of a run (names, `latest`, retention, readers) is in folder.py; checkpoints of before
this format, DeepSpeed's pickles, are converted by legacy.py.
"""
