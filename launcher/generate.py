"""A look at what a converted model writes, through `transformers` and nothing of ours.

decoders            prompt -> the prompt and how it goes on
encoder-decoders    prompt -> what the decoder says of it, sentinels and all
encoders            prompt with <mask> in it -> the prompt with the likeliest piece in place of each
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.mistakes import Mistake


def generate(folder: Path, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, seed: int) -> list[str]:
    """One text for each prompt; a temperature of 0 takes the likeliest token every time.

    Nothing of the folder is run. Raises ValueError when it holds no model of the classes that are written here, or when
    a prompt for an encoder has no mask in it.
    """
    if not (folder / "config.json").exists():
        raise Mistake(
            f"{folder}: no config.json in it; name a folder written by 'shardline convert RUN --to hf --out DIR'"
        )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from model.exchange.in_transformers import quiet_transformers

    with quiet_transformers():
        tokenizer, model, fills_masks = _load(folder)
        torch.manual_seed(seed)
        speak = _fill if fills_masks else _speak
        return [speak(tokenizer, model, prompt, max_new_tokens, temperature) for prompt in prompts]


def _load(folder: Path) -> tuple[Any, Any, bool]:
    import torch

    from model.exchange.json_objects import quoted
    from model.exchange.their_folder import HfFolder, correspondence, load_model, load_tokenizer

    theirs = HfFolder.read(folder)
    correspondence(theirs)
    with theirs.clean_view() as view:
        tokenizer = load_tokenizer(theirs, view)
        try:
            model = load_model(theirs, view, torch.float32)
        except Exception as error:  # transformers raises what it pleases of files that it does not take
            raise Mistake(f"{folder}: transformers cannot load it ({quoted(str(error))})") from error
    return tokenizer, model, theirs.config.architecture.fills_masks


def _speak(tokenizer: Any, model: Any, prompt: str, max_new_tokens: int, temperature: float) -> str:
    import torch

    from model.exchange.in_transformers import cache_for

    how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    if model.config.is_encoder_decoder:
        how |= cache_for(model)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, **how)[0]
    if not model.config.is_encoder_decoder:
        return str(tokenizer.decode(output, skip_special_tokens=True))
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return str(tokenizer.decode([token for token in output.tolist() if token not in ends]))


def _fill(tokenizer: Any, model: Any, prompt: str, max_new_tokens: int, temperature: float) -> str:
    """All gaps at once, each for itself; there are as many tokens as masks, so max_new_tokens limits nothing."""
    import torch

    if tokenizer.mask_token is None or tokenizer.mask_token not in prompt:
        raise Mistake(f"--prompt: {prompt!r} has no {tokenizer.mask_token or 'mask'}; mark the tokens to fill with it")
    ids = tokenizer(prompt, return_tensors="pt", split_special_tokens=False).input_ids
    with torch.no_grad():
        scores = model(ids).logits[0]
    scores[:, [index for index, piece in tokenizer.added_tokens_decoder.items() if piece.special]] = -torch.inf
    places = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]
    if temperature:
        ids[0, places] = torch.multinomial((scores[places] / temperature).softmax(-1), 1)[:, 0]
    else:
        ids[0, places] = scores[places].argmax(-1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))
