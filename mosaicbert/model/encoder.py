"""Encoder with the Hugging Face interface, and base class of the models: loading, saving and initialization."""

import re
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.init import init_module
from mosaicbert.model.layers import Documents, Embeddings, Layer, Pooler
from mosaicbert.model.layouts import Layout, PackedLayout, PaddedLayout, UnpaddedLayout, pack
from mosaicbert.model.padding import real_tokens
from mosaicbert.model.published import published_key_mapping
from mosaicbert.modes import autocast_dtype, is_traced
from mosaicbert.ops.attention import ATTENTION_IMPLEMENTATIONS, AttentionRecorder, PaddedDocuments


class MosaicBertPreTrainedModel(PreTrainedModel):
    """Base class of the models: loading of weights, initialization, and selection of the attention backend."""

    config: MosaicBertConfig
    config_class = MosaicBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer averages over accumulated batches

    # Regular expressions of weights that may be missing (new heads) or unexpected (heads of other classes) on loading.
    _ignored_missing_weights: ClassVar[str] = r"(?!)"
    _ignored_unexpected_weights: ClassVar[str] = r"^(head|decoder|classifier|qa_outputs|(model\.)?pooler)\."
    _has_classification_head: ClassVar[bool] = False  # whether `classifier` contains the pooler

    @classmethod
    def from_pretrained(cls, *args: Any, strict: bool = True, **kwargs: Any) -> Any:
        """Load weights from a folder of this package or from a published MosaicBERT checkpoint.

        Args:
            *args: Positional arguments of PreTrainedModel.from_pretrained, a path or a Hub name first.
            strict: Whether missing and unknown weights are errors. If False, missing weights are initialized and
                unknown weights are ignored, with the report of Hugging Face. New heads are always initialized.
            **kwargs: Keyword arguments of PreTrainedModel.from_pretrained.

        Returns:
            The model in evaluation mode, or with `output_loading_info` the model and the loading information.

        Raises:
            ValueError: If `strict` and a required weight is missing, or the checkpoint has an unknown weight.
        """
        return_loading_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", published_key_mapping(cls._has_classification_head))
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, loading_info = loaded
        model._weight_conversions = None  # otherwise save_pretrained reverts the renaming
        model.tie_weights()  # transformers 5.0 does not tie weights that a checkpoint stores twice
        missing = sorted(
            key for key in loading_info["missing_keys"] if not re.search(cls._ignored_missing_weights, key)
        )
        unexpected = sorted(
            key for key in loading_info["unexpected_keys"] if not re.search(cls._ignored_unexpected_weights, key)
        )
        if strict and (missing or unexpected):
            raise ValueError(
                f"`{args[0] if args else kwargs}` must be a checkpoint of {cls.__name__}, got "
                f"{' and '.join(_format_names('missing', missing) + _format_names('unexpected', unexpected))}. "
                "Load it with the class that saved it, or pass strict=False to initialize missing weights and ignore "
                "unexpected ones."
            )
        return (model, loading_info) if return_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, std=self.config.initializer_range)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *_: Any, **__: Any) -> str:
        # The backends differ from those of Hugging Face. A backend is probed on the first batch, when the device is
        # known. Hugging Face allows a configuration to request attention weights only with "eager".
        if attn_implementation is None:
            return "eager" if self.config.output_attentions else "auto"
        if attn_implementation not in ATTENTION_IMPLEMENTATIONS:
            raise ValueError(
                f"`attn_implementation` must be one of {', '.join(ATTENTION_IMPLEMENTATIONS)}, "
                f"got {attn_implementation!r}. Use 'auto' for the fastest backend that works."
            )
        return attn_implementation

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True


class StateRecorder:
    """Recorder of hidden states in the layout of the inputs.

    The computation continues from the recorded tensors, so that they have gradients, as those of Hugging Face's BERT.

    Args:
        layout: Layout of the inputs.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.recorded: list[Tensor] = []

    def record(self, hidden: Tensor) -> Tensor:
        """Record the hidden states of the tokens, and return them, (T, C)."""
        self.recorded.append(self.layout.restore(hidden))
        return self.layout.flatten(self.recorded[-1])


class EncodedBatch(NamedTuple):
    """Output of the encoder for the inputs of a Hugging Face model.

    Attributes:
        last: (T, C) last hidden states of the tokens of `layout`, or (B, C) of the first tokens only.
        layout: Layout of the inputs.
        shape: Shape of input_ids.
        hidden_states: Embeddings and output of each layer in the layout of the inputs, or None.
        attentions: Attention weights of each layer, (B, H, S, P + S) each, or None.
    """

    last: Tensor
    layout: Layout
    shape: tuple[int, ...]
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class MosaicBertModel(MosaicBertPreTrainedModel):
    """MosaicBERT encoder without a head.

    Args:
        config: Configuration of the model.
        add_pooling_layer: Whether to add a tanh pooler on [CLS], whose output is `pooler_output`.
    """

    _ignored_missing_weights = r"^(model\.)?pooler\."

    def __init__(self, config: MosaicBertConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        setattr(self.embeddings, "word_embeddings", value)  # noqa: B010

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Compute the embeddings of unpadded tokens.

        Args:
            input_ids: (T,) int64.
            token_type_ids: (T,) int64, or None for all zeros.

        Returns:
            (T, C).
        """
        return self.embeddings(self.embeddings.word_embeddings(input_ids), token_type_ids)

    def encode(
        self, embedded: Tensor, cu_seqlens: Tensor, max_seqlen: int, output_indices: Tensor | None = None
    ) -> Tensor:
        """Run the layers on the embeddings of unpadded tokens.

        Args:
            embedded: (T, C), output of `embed`.
            cu_seqlens: (B + 1,) int32, start index of each document, followed by T. The first entry is 0.
            max_seqlen: Number of tokens of the longest document.
            output_indices: (K,) int64, indices of the tokens whose last hidden state is computed, or None for all
                tokens. The output projection and feed-forward network of the last layer then run on these tokens only.

        Returns:
            (T, C), or (K, C) if output_indices is given.
        """
        documents = pack(cu_seqlens, max_seqlen, self.config, autocast_dtype(embedded.device.type, embedded.dtype))
        return self._run_layers(embedded, documents, output_indices)

    def _run_layers(
        self,
        hidden: Tensor,
        documents: Documents,
        output_indices: Tensor | None,
        prefixes: list[tuple[Tensor, Tensor]] | None = None,
        recorder: StateRecorder | None = None,
    ) -> Tensor:
        """Run the layers. The recorder, if any, receives the input and the output of each layer."""
        for number, layer in enumerate(self.layers, start=1):
            if recorder is not None:
                hidden = recorder.record(hidden)
            if prefixes is not None and isinstance(documents, PaddedDocuments):
                documents = documents._replace(prefix=prefixes[number - 1])
            arguments = (hidden, documents, output_indices if number == len(self.layers) else None)
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(layer.__call__, *arguments)
            else:
                hidden = layer(*arguments)
        return hidden if recorder is None else recorder.record(hidden)

    def _embed_words(self, input_ids: Tensor) -> Tensor:  # (B, S) -> (B, S, C), or (T,) -> (T, C)
        words = self.embeddings.word_embeddings
        # Hooks on the word embeddings, such as that of NEFTune, require three dimensions.
        return words(input_ids) if input_ids.ndim > 1 else words(input_ids[None])[0]

    def encode_batch(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        head_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        past_key_values: Any,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        first_tokens_only: bool = False,
    ) -> EncodedBatch:
        """Encode the inputs of a Hugging Face model, see `forward`.

        Args:
            input_ids: See `forward`, as all arguments but the last.
            attention_mask: See `forward`.
            token_type_ids: See `forward`.
            position_ids: See `forward`.
            head_mask: See `forward`.
            inputs_embeds: See `forward`.
            past_key_values: See `forward`.
            cu_seqlens: See `forward`.
            max_seqlen: See `forward`.
            output_attentions: See `forward`.
            output_hidden_states: See `forward`.
            first_tokens_only: Whether only the last hidden states of the first tokens are needed.

        Returns:
            The output of the encoder, with the layout that converts it to that of the inputs.

        Raises:
            ValueError: See `forward`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            count = "none" if input_ids is None else "both"
            raise ValueError(f"Exactly one of `input_ids` and `inputs_embeds` must be given, got {count}. Pass one.")
        if head_mask is not None:
            raise ValueError("`head_mask` must be None, got a tensor. The attention backends do not support it.")
        config = self.config
        returns_weights = config.output_attentions if output_attentions is None else output_attentions
        returns_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        words = self._embed_words(cast(Tensor, input_ids)) if inputs_embeds is None else inputs_embeds
        prefixes = _layer_prefixes(past_key_values, config.num_hidden_layers)
        recorder = AttentionRecorder() if returns_weights else None
        layout = _choose_layout(words, attention_mask, position_ids, cu_seqlens, max_seqlen, recorder, prefixes)
        if token_type_ids is not None:
            check_shape("token_type_ids", token_type_ids, words.shape[:-1])
            token_type_ids = layout.flatten(token_type_ids)
        hidden = self.embeddings(layout.flatten(words), token_type_ids)
        states = StateRecorder(layout) if returns_states else None
        # The last layer computes other tokens only for the hidden states.
        output_indices = layout.first_indices if first_tokens_only and states is None else None
        documents = layout.documents(config, autocast_dtype(hidden.device.type, hidden.dtype))
        last = self._run_layers(hidden, documents, output_indices, prefixes, states)
        if first_tokens_only and output_indices is None:
            last = last[layout.first_indices]
        hidden_states = None if states is None else tuple(states.recorded)
        attentions = None if recorder is None else tuple(recorder.weights)
        return EncodedBatch(last, layout, words.shape[:-1], hidden_states, attentions)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode padded or unpadded sequences.

        Padding is removed before the encoder and restored after it. While the model is traced, exported or compiled as
        a whole, and for attention weights, padded batches are computed with their padding, with the same result.

        Args:
            input_ids: (B, S) int64, or (T,) int64 together with cu_seqlens. None if inputs_embeds is given.
            attention_mask: (B, S), nonzero for real tokens, or None if all tokens are real. In a row without a real
                token, the first one counts as real.
            token_type_ids: int64 in the shape of input_ids, or None for all zeros.
            position_ids: (B, S) or (1, S) int64, or None. A position of 0 starts a new document within a row, as in
                the batches of DataCollatorWithFlattening. Within a document, positions must be consecutive.
            head_mask: None. Other values are not supported.
            inputs_embeds: (B, S, C) or (T, C) word embeddings instead of input_ids.
            past_key_values: Keys and values of P tokens before each sequence, as in prefix tuning: a Cache, or a pair
                of tensors (B, H, P, D) per layer. They have no position. attention_mask is then (B, P + S).
            cu_seqlens: (B + 1,) int32, start index of each document, followed by T. Only for unpadded input.
            max_seqlen: Number of tokens of the longest document, or None to compute it from cu_seqlens, which
                synchronizes with the device.
            output_attentions: True to return the attention weights of each layer, or None for the value of the
                configuration. Only for padded input.
            output_hidden_states: True to return the embeddings and the output of each layer, or None for the value of
                the configuration.
            return_dict: False to return a tuple, or None for the value of the configuration.

        Returns:
            last_hidden_state: (B, S, C) with zeros at padding, or (T, C) for unpadded input. pooler_output: (B, C), if
            the model has a pooler. hidden_states: tuple of num_hidden_layers + 1 tensors in the shape of
            last_hidden_state, if requested. attentions: tuple of num_hidden_layers tensors (B, H, S, P + S), if
            requested.

        Raises:
            ValueError: If shapes do not match, positions are not consecutive, or an argument is not supported.
        """
        batch = self.encode_batch(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            past_key_values,
            cu_seqlens,
            max_seqlen,
            output_attentions,
            output_hidden_states,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=batch.layout.restore(batch.last),  # pyright: ignore[reportArgumentType]
            pooler_output=None if self.pooler is None else self.pooler(batch.last[batch.layout.first_indices]),
            hidden_states=batch.hidden_states,  # pyright: ignore[reportArgumentType]
            attentions=batch.attentions,  # pyright: ignore[reportArgumentType]
        )
        return format_output(self.config, output, return_dict)


def _choose_layout(
    words: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    recorder: AttentionRecorder | None,
    prefixes: list[tuple[Tensor, Tensor]] | None,
) -> Layout:
    shape = words.shape[:-1]
    prefix_length = 0 if prefixes is None else prefixes[0][0].shape[2]
    if cu_seqlens is not None:
        for name, is_given in (
            ("attention_mask", attention_mask is not None),
            ("position_ids", position_ids is not None),
            ("past_key_values", prefixes is not None),
            ("output_attentions", recorder is not None),
        ):
            if is_given:
                raise ValueError(f"`{name}` is not supported with `cu_seqlens`. Remove one of them.")
        if len(shape) != 1:
            raise ValueError(
                f"`input_ids` must be (T,) if `cu_seqlens` is given, got {tuple(shape)}. "
                "Remove `cu_seqlens` for padded input."
            )
        return PackedLayout(cu_seqlens, max_seqlen)
    if len(shape) != 2:
        raise ValueError(
            f"`input_ids` must be (B, S) if `cu_seqlens` is not given, got {tuple(shape)}. "
            "Pass `cu_seqlens` for unpadded input."
        )
    mask_shape = (shape[0], prefix_length + shape[1])
    if attention_mask is None:
        attention_mask = torch.ones(mask_shape, dtype=torch.bool, device=words.device)
    check_shape("attention_mask", attention_mask, mask_shape)
    is_prefix, is_token = attention_mask[:, :prefix_length] != 0, real_tokens(attention_mask[:, prefix_length:])
    if position_ids is not None:
        check_shape("position_ids", position_ids, (shape[0] if len(position_ids) == shape[0] else 1, shape[1]))
    if recorder is None and prefixes is None and not is_traced(words, is_token):
        return UnpaddedLayout(is_token, position_ids)
    return PaddedLayout(is_token, is_prefix, position_ids, recorder)


def _layer_prefixes(past_key_values: Any, num_layers: int) -> list[tuple[Tensor, Tensor]] | None:
    """Return the keys and values of the prefix of each layer, or None for an empty prefix."""
    if past_key_values is None:
        return None
    if hasattr(past_key_values, "layers"):  # a Cache of Hugging Face
        past_key_values = [(layer.keys, layer.values) for layer in past_key_values.layers]
    prefixes = [(keys, values) for keys, values in past_key_values if keys is not None]
    if prefixes and len(prefixes) != num_layers:
        raise ValueError(
            f"`past_key_values` must have the keys and values of {num_layers} layers, got {len(prefixes)}. Create it "
            "for this model."
        )
    return prefixes or None


def check_shape(name: str, tokens: Tensor, shape: tuple[int, ...]) -> None:
    """Check that an input has one entry per token.

    Args:
        name: Name of the input.
        tokens: Input.
        shape: Shape of the tokens, (B, S) or (T,).

    Raises:
        ValueError: If the shapes differ.
    """
    if tokens.shape != shape:
        raise ValueError(
            f"`{name}` must have the shape {tuple(shape)}, one entry per token, got {tuple(tokens.shape)}. "
            "Pass it from the same tokenizer call as the tokens."
        )


def format_output(config: MosaicBertConfig, output: Any, return_dict: bool | None) -> Any:
    """Return an output of a model, or its fields that are not None as a tuple.

    Args:
        config: Configuration of the model.
        output: Output of the model.
        return_dict: Whether to return the output itself, or None for the value of the configuration.
    """
    return_dict = config.return_dict if return_dict is None else return_dict
    return output if return_dict else output.to_tuple()


def _format_names(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    suffix = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{len(names)} {kind} weights ({', '.join(names[:3])}{suffix})"]
