"""Hugging Face model classes for training and inference, unpadded from the embeddings to the loss."""

import re
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel

from mosaicbert.batch import MicroBatch
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.init import init_module
from mosaicbert.model.layers import Embeddings, Layer, MlmHead, Pooler
from mosaicbert.model.padding import Unpadding, compute_unpadding, repad, unpad
from mosaicbert.model.published import published_key_mapping
from mosaicbert.ops.attention import ATTENTION_IMPLEMENTATIONS
from mosaicbert.ops.cross_entropy import linear_cross_entropy


class MosaicBertPreTrainedModel(PreTrainedModel):
    """Base class of the models: loading of weights, initialization, and selection of the attention backend."""

    config: MosaicBertConfig
    config_class = MosaicBertConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer averages over accumulated batches

    # Regular expressions of weights that may be missing (new heads) or unexpected (heads of other classes) on loading.
    _ignored_missing_weights: ClassVar[str] = r"(?!)"
    _ignored_unexpected_weights: ClassVar[str] = r"^(head|decoder|pooler|classifier)\."

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load weights from a folder of this package or from a published MosaicBERT checkpoint.

        Args:
            *args: Positional arguments of PreTrainedModel.from_pretrained, a path or a Hub name first.
            **kwargs: Keyword arguments of PreTrainedModel.from_pretrained.

        Returns:
            The model in evaluation mode, or with `output_loading_info` the model and the loading information.

        Raises:
            ValueError: If a required weight is missing, or the checkpoint has an unknown weight.
        """
        return_loading_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", published_key_mapping())
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
        if missing or unexpected:
            raise ValueError(
                f"`{args[0] if args else kwargs}` must be a checkpoint of {cls.__name__}, got "
                f"{' and '.join(_format_names('missing', missing) + _format_names('unexpected', unexpected))}. "
                "Load it with the class that saved it."
            )
        return (model, loading_info) if return_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, std=self.config.initializer_range)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *_: Any, **__: Any) -> str:
        # The backends differ from those of Hugging Face. A backend is probed on the first batch, when the device is
        # known.
        if attn_implementation is None:
            return "auto"
        if attn_implementation not in ATTENTION_IMPLEMENTATIONS:
            raise ValueError(
                f"`attn_implementation` must be one of {', '.join(ATTENTION_IMPLEMENTATIONS)}, "
                f"got {attn_implementation!r}. Use 'auto' for the fastest backend that works."
            )
        return attn_implementation

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True


class MosaicBertModel(MosaicBertPreTrainedModel):
    """MosaicBERT encoder without a head."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        setattr(self.embeddings, "word_embeddings", value)  # noqa: B010

    def encode(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        token_type_ids: Tensor | None = None,
        output_indices: Tensor | None = None,
    ) -> list[Tensor]:
        """Run the encoder on unpadded tokens.

        Args:
            input_ids: (T,) int64.
            cu_seqlens: (B + 1,) int32, start index of each document, followed by T. The first entry is 0.
            max_seqlen: Number of tokens of the longest document.
            token_type_ids: (T,) int64, or None for all zeros.
            output_indices: (K,) int64, indices of the tokens whose last hidden state is computed, or None for all
                tokens. The output projection and feed-forward network of the last layer then run on these tokens only.

        Returns:
            The embeddings and the output of each layer, (T, C) each. The last one is (K, C) if output_indices is given.
        """
        return self.encode_embedded(self.embeddings(input_ids, token_type_ids), cu_seqlens, max_seqlen, output_indices)

    def encode_embedded(
        self, embedded: Tensor, cu_seqlens: Tensor, max_seqlen: int, output_indices: Tensor | None = None
    ) -> list[Tensor]:
        """Run the layers of the encoder on embeddings.

        Args:
            embedded: (T, C), output of the embeddings.
            cu_seqlens: (B + 1,) int32, see `encode`.
            max_seqlen: Number of tokens of the longest document.
            output_indices: (K,) int64 or None, see `encode`.

        Returns:
            The embeddings and the output of each layer, as in `encode`.
        """
        states = [embedded]
        for number, layer in enumerate(self.layers, start=1):
            layer_output_indices = output_indices if number == len(self.layers) else None
            states.append(layer(states[-1], cu_seqlens, max_seqlen, layer_output_indices))
        return states

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode padded or unpadded sequences.

        Args:
            input_ids: (B, S) int64, or (T,) int64 together with cu_seqlens.
            attention_mask: (B, S), nonzero for real tokens, or None if all tokens are real.
            token_type_ids: int64 in the shape of input_ids, or None for all zeros.
            cu_seqlens: (B + 1,) int32, start index of each document, followed by T. Only for unpadded input.
            max_seqlen: Number of tokens of the longest document, or None to compute it from cu_seqlens, which
                synchronizes with the device.
            output_hidden_states: True to return the embeddings and the output of each layer, or None for the value of
                the configuration.
            return_dict: False to return a tuple, or None for the value of the configuration.

        Returns:
            last_hidden_state: (B, S, C) with zeros at padding, or (T, C) for unpadded input. hidden_states: tuple of
            num_hidden_layers + 1 tensors of this shape, if requested.

        Raises:
            ValueError: If shapes do not match, or a row of attention_mask has no real token.
        """
        adapter = _PaddingAdapter(input_ids, attention_mask, cu_seqlens, max_seqlen)
        states = self.encode(
            adapter.unpad(input_ids),
            adapter.cu_seqlens,
            adapter.max_seqlen,
            adapter.unpad(token_type_ids, "token_type_ids"),
        )
        output = BaseModelOutput(
            last_hidden_state=adapter.repad(states[-1]),
            hidden_states=adapter.repad_states(self.config, states, output_hidden_states),
        )
        return _format_output(self.config, output, return_dict)


class MosaicBertForMaskedLM(MosaicBertPreTrainedModel):
    """MosaicBERT with a masked-language-modeling head, whose decoder weight is tied to the word embeddings."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}  # noqa: RUF012
    _ignored_unexpected_weights = r"^(pooler|classifier)\."

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.model = MosaicBertModel(config)
        self.head = MlmHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    def predict(self, batch: MicroBatch) -> Tensor:
        """Compute the logits of the masked tokens of a micro-batch, for evaluation.

        Args:
            batch: Unpadded micro-batch with M masked tokens.

        Returns:
            (M, V).
        """
        states = self.model.encode(
            batch.input_ids, batch.cu_seqlens, batch.max_seqlen, output_indices=batch.masked_indices
        )
        return self.decoder(self.head(states[-1]))

    def masked_lm_loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute the summed loss of a micro-batch for a training step, without storing all logits.

        Args:
            batch: Unpadded micro-batch with M masked tokens.

        Returns:
            The sum of the cross-entropies at the masked tokens, () fp32, and the number of correct predictions, ()
            int64.
        """
        embedded = self.model.embeddings(batch.input_ids, None)
        return self.embedded_loss(embedded, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices, batch.labels)

    def embedded_loss(
        self, embedded: Tensor, cu_seqlens: Tensor, max_seqlen: int, masked_indices: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute `masked_lm_loss` from embeddings. This is the part of the step that torch.compile compiles.

        Args:
            embedded: (T, C), output of the embeddings.
            cu_seqlens: (B + 1,) int32, start index of each document, followed by T.
            max_seqlen: Number of tokens of the longest document.
            masked_indices: (M,) int64, indices of the masked tokens.
            labels: (M,) int64, original tokens, -100 for padding.

        Returns:
            The sum of the cross-entropies, () fp32, and the number of correct predictions, () int64.
        """
        states = self.model.encode_embedded(embedded, cu_seqlens, max_seqlen, masked_indices)
        return linear_cross_entropy(self.head(states[-1]), self.decoder.weight, self.decoder.bias, labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Predict tokens of padded or unpadded sequences.

        Args:
            input_ids: (B, S) int64, or (T,) int64 together with cu_seqlens.
            attention_mask: (B, S), nonzero for real tokens, or None if all tokens are real.
            token_type_ids: int64 in the shape of input_ids, or None for all zeros.
            labels: int64 in the shape of input_ids, -100 for tokens without a prediction, or None.
            cu_seqlens: (B + 1,) int32, start index of each document, followed by T. Only for unpadded input.
            max_seqlen: Number of tokens of the longest document, or None to compute it from cu_seqlens, which
                synchronizes with the device.
            output_hidden_states: True to return the embeddings and the output of each layer, or None for the value of
                the configuration.
            return_dict: False to return a tuple, or None for the value of the configuration.

        Returns:
            logits: (B, S, V) with zeros at padding, or (T, V) for unpadded input. In training mode with labels, (M, V)
            for the M labeled tokens only. loss: mean cross-entropy of the labeled tokens, () fp32, if labels are given.

        Raises:
            ValueError: If shapes do not match, a row of attention_mask has no real token, or hidden states are
                requested in training mode with labels.
        """
        adapter = _PaddingAdapter(input_ids, attention_mask, cu_seqlens, max_seqlen)
        token_labels = adapter.unpad(labels, "labels")
        output_indices = None
        if token_labels is not None and self.training:
            if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
                # The last layer computes only the labeled tokens in training mode.
                raise ValueError(
                    "`output_hidden_states` is not supported with `labels` in training mode. Call model.eval() first."
                )
            output_indices = (token_labels != -100).nonzero(as_tuple=True)[0]
            token_labels = token_labels[output_indices]
        states = self.model.encode(
            adapter.unpad(input_ids),
            adapter.cu_seqlens,
            adapter.max_seqlen,
            adapter.unpad(token_type_ids, "token_type_ids"),
            output_indices,
        )
        logits = self.decoder(self.head(states[-1]))
        output = MaskedLMOutput(
            loss=None if token_labels is None else F.cross_entropy(logits.float(), token_labels),
            logits=logits if output_indices is not None else adapter.repad(logits),
            hidden_states=adapter.repad_states(self.config, states, output_hidden_states),
        )
        return _format_output(self.config, output, return_dict)


class MosaicBertForSequenceClassification(MosaicBertPreTrainedModel):
    """MosaicBERT with a tanh pooler on [CLS] and a linear classifier."""

    _ignored_missing_weights = r"^(pooler|classifier)\."
    _ignored_unexpected_weights = r"^(head|decoder)\."

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 2
        self.model = MosaicBertModel(config)
        self.pooler = Pooler(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify padded or unpadded sequences.

        Args:
            input_ids: (B, S) int64, or (T,) int64 together with cu_seqlens.
            attention_mask: (B, S), nonzero for real tokens, or None if all tokens are real.
            token_type_ids: int64 in the shape of input_ids, or None for all zeros.
            labels: (B,) int64 classes, (B,) or (B, num_labels) regression targets, (B, num_labels) multi-hot labels, or
                None. config.problem_type selects the loss; if it is None, the loss follows from num_labels and the
                dtype of the labels, as in Hugging Face's BertForSequenceClassification.
            cu_seqlens: (B + 1,) int32, start index of each document, followed by T. Only for unpadded input.
            max_seqlen: Number of tokens of the longest document, or None to compute it from cu_seqlens, which
                synchronizes with the device.
            output_hidden_states: True to return the embeddings and the output of each layer, or None for the value of
                the configuration.
            return_dict: False to return a tuple, or None for the value of the configuration.

        Returns:
            logits: (B, num_labels). loss: () fp32, if labels are given.

        Raises:
            ValueError: If shapes do not match, or a row of attention_mask has no real token.
        """
        adapter = _PaddingAdapter(input_ids, attention_mask, cu_seqlens, max_seqlen)
        first_indices = adapter.cu_seqlens[:-1].long()
        # The pooler reads only [CLS], so the last layer computes other tokens only for the hidden states.
        return_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        states = self.model.encode(
            adapter.unpad(input_ids),
            adapter.cu_seqlens,
            adapter.max_seqlen,
            adapter.unpad(token_type_ids, "token_type_ids"),
            output_indices=None if return_hidden_states else first_indices,
        )
        first_tokens = states[-1][first_indices] if return_hidden_states else states[-1]
        logits = self.classifier(self.dropout(self.pooler(first_tokens)))
        output = SequenceClassifierOutput(
            loss=None if labels is None else _classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=adapter.repad_states(self.config, states, output_hidden_states),
        )
        return _format_output(self.config, output, return_dict)


class _PaddingAdapter:
    """Padding adapter: removes padding from the inputs and restores it in the outputs of padded callers."""

    def __init__(
        self, input_ids: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None, max_seqlen: int | None
    ) -> None:
        self.unpadding: Unpadding | None = None
        self.shape = input_ids.shape
        if cu_seqlens is not None:
            if attention_mask is not None:
                raise ValueError("`attention_mask` is not supported with `cu_seqlens`. Remove one of them.")
            if input_ids.ndim != 1:
                raise ValueError(
                    f"`input_ids` must be (T,) if `cu_seqlens` is given, got {tuple(input_ids.shape)}. "
                    "Remove `cu_seqlens` for padded input."
                )
            self.cu_seqlens = cu_seqlens
            self.max_seqlen = int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen
            return
        if input_ids.ndim != 2:
            raise ValueError(
                f"`input_ids` must be (B, S) if `cu_seqlens` is not given, got {tuple(input_ids.shape)}. "
                "Pass `cu_seqlens` for unpadded input."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)}, "
                f"got {tuple(attention_mask.shape)}. Pass both from the same tokenizer call."
            )
        self.unpadding = compute_unpadding(attention_mask)
        self.cu_seqlens, self.max_seqlen = self.unpadding.cu_seqlens, self.unpadding.max_seqlen

    def unpad(self, padded: Any, name: str = "input_ids") -> Any:
        if padded is not None and padded.shape != self.shape:
            raise ValueError(
                f"`{name}` must have the shape of `input_ids`, {tuple(self.shape)}, got {tuple(padded.shape)}. "
                "Pass both from the same tokenizer call."
            )
        return padded if padded is None or self.unpadding is None else unpad(padded, self.unpadding)

    def repad(self, tokens: Tensor) -> Tensor:
        return tokens if self.unpadding is None else repad(tokens, self.unpadding)

    def repad_states(
        self, config: MosaicBertConfig, states: list[Tensor], output_hidden_states: bool | None
    ) -> tuple[Tensor, ...] | None:
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return tuple(self.repad(state) for state in states) if output_hidden_states else None


def _classification_loss(config: MosaicBertConfig, logits: Tensor, labels: Tensor) -> Tensor:
    problem_type = config.problem_type
    if problem_type is None:
        is_class = labels.dtype in (torch.int64, torch.int32)
        problem_type = "single_label_classification" if is_class else "multi_label_classification"
        problem_type = "regression" if config.num_labels == 1 else problem_type
    if problem_type == "regression":
        return F.mse_loss(logits.float().view(-1), labels.float().view(-1))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits.float(), labels.view(-1).long())
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def _format_output(config: MosaicBertConfig, output: Any, return_dict: bool | None) -> Any:
    return_dict = config.return_dict if return_dict is None else return_dict
    return output if return_dict else output.to_tuple()


def _format_names(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    suffix = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{len(names)} {kind} weights ({', '.join(names[:3])}{suffix})"]
