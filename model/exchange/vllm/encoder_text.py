"""Prompts that an encoder reads, in vLLM, whose own encoder-decoders read sounds and images and send text to decoders.

    prompt -> renderer -> one item of the kind "text" at place 0 + the decoder's start token -> scheduler -> the model

The item is what a sound is to vLLM's Whisper: it is encoded in the step that reads the decoder's first tokens, and what
cross-attention keeps of it is the request's own.
"""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.inputs.engine import build_enc_dec_input, mm_enc_dec_input, mm_input, tokens_input
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseProcessingInfo,
    EncDecMultiModalProcessor,
    ProcessorInputs,
    TimingContext,
)
from vllm.renderers.hf import HfRenderer

KIND, IDS = "text", "encoder_input_ids"
"""Kind of item among vLLM's, and the key under which `embed_multimodal` gets its ids [S]."""
MODE = "encoder_text"
"""Name of the renderer, and of the tokenizer that goes with it, in vLLM's registries."""


class EncoderTextConfig(VerifyAndUpdateConfig):
    """What vLLM asks about a class before anything is built."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Has prompts go through the renderer below."""
        model_config.tokenizer_mode = MODE

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """ValueError for what has no place here; prompts in chunks are off by vLLM itself, whatever is asked for."""
        wrong = {
            "--enable-prefix-caching": vllm_config.cache_config.enable_prefix_caching,
            "--speculative-config": vllm_config.speculative_config,
        }
        if asked := [key for key, value in wrong.items() if value]:
            raise ValueError(f"{', '.join(asked)}: not with an encoder that reads the prompt; leave it out")


class EncoderTextRenderer(HfRenderer):
    """Gives prompts to the encoder; a decoder that is given none begins with its start token."""

    def _process_enc_dec(self, prompt: Mapping[str, Any], *, skip_mm_cache: bool = False) -> Any:
        read, begun = prompt["encoder_prompt"], prompt["decoder_prompt"]
        inputs = build_enc_dec_input(
            self.mm_processor.apply(
                ProcessorInputs(read["prompt_token_ids"], MultiModalDataItems({})), TimingContext(enabled=False)
            ),
            None if begun is None else tokens_input(begun["prompt_token_ids"]),
            self.get_dec_start_token_id(),
        )
        # By what stands here vLLM bounds the answer, as if one text went on from the other.
        inputs["encoder_prompt"] = tokens_input(inputs["decoder_prompt"]["prompt_token_ids"], prompt=read.get("prompt"))
        return inputs

    async def _process_enc_dec_async(self, prompt: Mapping[str, Any], *, skip_mm_cache: bool = False) -> Any:
        return self._process_enc_dec(prompt)


class EncoderTextInfo(BaseProcessingInfo):
    """One text for each request, as long as the model reads."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """See vLLM."""
        return {KIND: 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """See vLLM."""
        return {KIND: seq_len}


class EncoderTextDummies(BaseDummyInputsBuilder):
    """Nothing: `EncoderTextProcessor.get_dummy_inputs` needs neither text nor data."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """See vLLM."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """See vLLM."""
        return {}


class EncoderTextProcessor(EncDecMultiModalProcessor):
    """Makes ids into an item, and nothing else: no text is tokenized twice, no id is taken for a placeholder."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> Any:
        """An item of the prompt's ids, for a decoder without a prompt."""
        fields = {IDS: MultiModalFieldConfig.batched(KIND)}
        item = mm_input(
            prompt_token_ids=inputs.prompt,
            mm_kwargs=MultiModalKwargsItems.from_hf_inputs({IDS: torch.tensor([inputs.prompt])}, fields),
            mm_hashes={KIND: [sha256(repr(inputs.prompt).encode()).hexdigest()]},
            mm_placeholders={KIND: [PlaceholderRange(offset=0, length=len(inputs.prompt))]},
        )
        return mm_enc_dec_input(item, [])

    def get_dummy_inputs(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> ProcessorInputs:
        """The longest prompt."""
        return ProcessorInputs([0] * seq_len, MultiModalDataItems({}))

    def create_encoder_prompt(self, prompt: list[int], mm_items: MultiModalDataItems) -> list[int]:
        """See vLLM; `apply` does without."""
        raise NotImplementedError

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> dict[str, Any]:
        raise NotImplementedError

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> list[Any]:
        raise NotImplementedError


def keep_texts_in_order() -> None:
    """Has vLLM's first runner encode texts in the order of the batch, which is the one that their states are kept by.

    Its own is that of the scheduler: a request that was set aside and is read again stands behind new ones in the batch
    but before them there, and each would be answered from the other's text. The second runner (GPUs) does likewise.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    scheduled = GPUModelRunner._batch_mm_inputs_from_scheduler

    def in_order(self: Any, output: Any) -> Any:
        place = self.input_batch.req_id_to_index
        texts = dict(sorted(output.scheduled_encoder_inputs.items(), key=lambda each: place[each[0]]))
        return scheduled(self, replace(output, scheduled_encoder_inputs=texts))

    GPUModelRunner._batch_mm_inputs_from_scheduler = in_order
