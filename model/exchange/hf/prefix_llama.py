"""Llama with a bidirectional prefix: the tokens of the prompt see each other, those after it see all before them.

`generate` takes the whole prompt as the prefix, or as much of it as `prefix_lengths` says. A plain call must say:
scored as a causal model, or with all of a text as its prefix, the model would give other numbers without a warning.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel


class PrefixLlamaConfig(LlamaConfig):
    """Keys of Llama; another type, so that nobody serves the model as a causal one."""

    model_type = "prefix_llama"


class PrefixLlamaModel(LlamaModel):
    """The stack; `prefix_lengths` int [B] counts the tokens of each row's prefix, padding left out."""

    config_class = PrefixLlamaConfig
    _supports_flash_attn = False  # its kernels take no mask

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        prefix_lengths=None,
        **kwargs,
    ):
        """As Llama's. ValueError when nothing is cached and `prefix_lengths` is missing, or when a prefix is cut."""
        states = input_ids if inputs_embeds is None else inputs_embeds
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None or attention_mask.ndim == 2:
            if prefix_lengths is not None:
                attention_mask = self.prefix_mask(states, attention_mask, past_key_values, prefix_lengths)
            elif not cached:
                raise ValueError(
                    "prefix_lengths: a call with nothing cached must say how many tokens of each row are prefix; "
                    "give a tensor [rows], 0 for none, or use generate(), which takes the whole prompt"
                )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def prefix_mask(self, states, attention_mask, past_key_values, prefix_lengths):
        """Mask for tokens or embeddings `states` [B, L, ...] that begin a text; attention_mask [B, L] or None."""
        rows, length = states.shape[:2]
        if past_key_values is not None and past_key_values.get_seq_length():
            raise ValueError("prefix_lengths: the prefix must come in one piece, but there is something in the cache")
        seen = states.new_ones((rows, length), dtype=torch.long) if attention_mask is None else attention_mask.long()
        seen = seen[:, :length]
        lengths = torch.as_tensor(prefix_lengths, device=states.device).expand(rows)
        if (lengths > seen.sum(1)).any():
            raise ValueError("prefix_lengths: a row has fewer tokens than its prefix; give the prefix in one piece")
        inside = (seen.cumsum(1) <= lengths[:, None]) & (seen > 0)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=torch.empty((rows, length, 0), dtype=self.dtype, device=states.device),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            block_sequence_ids=torch.where(inside, 0, -1),
        )


class PrefixLlamaForCausalLM(LlamaForCausalLM):
    """The stack with its head."""

    config_class = PrefixLlamaConfig
    _supports_flash_attn = False

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = PrefixLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, prefix_lengths=None, **kwargs):
        """As Llama's; see PrefixLlamaModel for `prefix_lengths`."""
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, prefix_lengths=prefix_lengths, **kwargs
        )

    @torch.no_grad()
    def generate(self, inputs=None, *args, prefix_lengths=None, **kwargs):
        """As everyone's; the prefix is the whole prompt unless `prefix_lengths` [B] says otherwise."""
        prompt = next(
            (x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None), None
        )
        if prompt is not None and kwargs.get("past_key_values") is None:
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = self._mask_of(prompt)
            if prefix_lengths is None:
                prefix_lengths = kwargs["attention_mask"].sum(1)
            kwargs["prefix_lengths"] = torch.as_tensor(prefix_lengths, device=prompt.device).expand(prompt.shape[0])
        return super().generate(inputs, *args, **kwargs)

    def _mask_of(self, prompt):
        """All tokens but leading padding."""
        pad, eos = self.generation_config.pad_token_id, self.generation_config.eos_token_id
        if pad is None or prompt.ndim != 2 or pad in (eos if isinstance(eos, list) else [eos]):
            return torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        return ((prompt != pad).cumsum(1) > 0).long()

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        is_first_iteration=False,
        prefix_lengths=None,
        **kwargs,
    ):
        """Marks the prefix wherever it is in what is computed: first, and every time where there is no cache."""
        if is_first_iteration or past_key_values is None:
            if getattr(past_key_values, "is_compileable", False) and attention_mask.ndim == 2:
                states = input_ids if inputs_embeds is None else inputs_embeds
                attention_mask = self.model.prefix_mask(states, attention_mask, past_key_values, prefix_lengths)
        else:
            prefix_lengths = None
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            prefix_lengths=prefix_lengths,
            **kwargs,
        )
