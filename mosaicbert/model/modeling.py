"""The Hugging Face classes: one set for training and for use. Unpadded from the embeddings to the loss."""

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
    """What the classes below share: loading, initialisation, and the choice of attention."""

    config: MosaicBertConfig
    config_class = MosaicBertConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    accepts_loss_kwargs = False  # the loss is a mean over its batch; Hugging Face's Trainer then averages over batches

    # A fine-tuning class begins with a new head, and leaves the head of pretraining behind: regular expressions.
    _ignored_missing_weights: ClassVar[str] = r"(?!)"
    _ignored_unexpected_weights: ClassVar[str] = r"^(head|decoder|pooler|classifier)\."

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads one of our folders, or a published MosaicBERT's: a path or a Hub name, as in Hugging Face's classes.

        Raises:
            ValueError: the checkpoint lacks a weight of the encoder, or holds one that is unknown.
        """
        return_loading_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", published_key_mapping())
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, loading_info = loaded
        model._weight_conversions = None  # save_pretrained would undo the renaming
        model.tie_weights()  # transformers 5.0 leaves weights apart that a checkpoint names twice, as published ones do
        missing = sorted(
            key for key in loading_info["missing_keys"] if not re.search(cls._ignored_missing_weights, key)
        )
        unexpected = sorted(
            key for key in loading_info["unexpected_keys"] if not re.search(cls._ignored_unexpected_weights, key)
        )
        if missing or unexpected:
            raise ValueError(
                f"{args[0] if args else kwargs}: not a checkpoint of {cls.__name__}: "
                f"{_format_names('missing', missing)}{_format_names('unexpected', unexpected)}"
                "load it with the class it was saved from."
            )
        return (model, loading_info) if return_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, std=self.config.initializer_range)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *_: Any, **__: Any) -> str:
        # Ours is another ladder than Hugging Face's. Which rung works is known when the first batch shows its device.
        if attn_implementation is None:
            return "auto"
        if attn_implementation not in ATTENTION_IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation={attn_implementation!r} is unknown; "
                f"choose one of {', '.join(ATTENTION_IMPLEMENTATIONS)}."
            )
        return attn_implementation

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True


class MosaicBertModel(MosaicBertPreTrainedModel):
    """The encoder without a head."""

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
        """Runs the encoder on unpadded tokens.

        Args:
            input_ids: (T,) int64.
            cu_seqlens: (B + 1,) int32, where each document begins; the first is 0, the last is T.
            max_seqlen: tokens of the longest document.
            token_type_ids: (T,) int64; None is all zeros.
            keep: (K,) int64, the only tokens whose last hidden state is wanted; None is all of them. The last layer's
                projection and feed-forward then run on these alone.

        Returns:
            The embeddings and the output of each layer, (T, C) each; the last is (K, C) if `keep` is given.
        """
        return self.encode_embedded(self.embeddings(input_ids, token_type_ids), cu_seqlens, max_seqlen, output_indices)

    def encode_embedded(
        self, embedded: Tensor, cu_seqlens: Tensor, max_seqlen: int, output_indices: Tensor | None = None
    ) -> list[Tensor]:
        """The layers of `encode`, on its embeddings (T, C)."""
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
        """Encodes padded or unpadded sequences.

        Args:
            input_ids: (B, S) int64; or (T,), unpadded, together with cu_seqlens.
            attention_mask: (B, S), non-zero for real tokens; None means that all are.
            token_type_ids: like input_ids; None is all zeros.
            cu_seqlens: (B + 1,) int32, for unpadded input: where each document begins, and T at the end.
            max_seqlen: tokens of the longest document; None takes it from cu_seqlens, which waits for the device.
            output_hidden_states: also return the embeddings and the output of each layer.
            return_dict: False returns a tuple.

        Returns:
            last_hidden_state (B, S, C) with zeros at padding; or (T, C) for unpadded input.

        Raises:
            ValueError: shapes do not fit together, or a row of attention_mask holds no token.
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
    """The encoder with the head that predicts masked tokens; the decoder's weight is the word embeddings'."""

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
        """Logits (M, V) at the masked tokens of `batch`, and only there: evaluation."""
        states = self.model.encode(
            batch.input_ids, batch.cu_seqlens, batch.max_seqlen, output_indices=batch.masked_indices
        )
        return self.decoder(self.head(states[-1]))

    def masked_lm_loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """What a step of pretraining learns from `batch`, without ever holding all of its logits.

        Returns:
            The cross-entropies at the masked tokens, summed, () fp32; how many were predicted right, () int64.
        """
        embedded = self.model.embeddings(batch.input_ids, None)
        return self.embedded_loss(embedded, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices, batch.labels)

    def embedded_loss(
        self, embedded: Tensor, cu_seqlens: Tensor, max_seqlen: int, masked_indices: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`masked_lm_loss` behind the embeddings (T, C): all of it that torch.compile may take."""
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
        """Predicts tokens; the arguments are those of `MosaicBertModel.forward`, and labels.

        Args:
            labels: like input_ids, -100 where nothing is to be predicted.

        Returns:
            logits (B, S, V) with zeros at padding, or (T, V) for unpadded input; in training mode, where labels are
            given, (M, V) at the labelled tokens only. loss, if labels are given: cross-entropy, mean over them.

        Raises:
            ValueError: as in `MosaicBertModel.forward`.
        """
        adapter = _PaddingAdapter(input_ids, attention_mask, cu_seqlens, max_seqlen)
        token_labels = adapter.unpad(labels, "labels")
        output_indices = None
        if token_labels is not None and self.training:
            if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
                raise ValueError(
                    "output_hidden_states needs model.eval(): in training the last layer keeps labelled tokens."
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
    """The encoder with a tanh pooler on [CLS] and a linear classifier."""

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
        """Classifies sequences; the arguments are those of `MosaicBertModel.forward`, and labels.

        Args:
            labels: (B,) int64 classes; (B,) or (B, num_labels) numbers for regression; (B, num_labels) for
                multi-label. config.problem_type says which; None is guessed as Hugging Face guesses it.

        Returns:
            logits (B, num_labels), and loss if labels are given.

        Raises:
            ValueError: as in `MosaicBertModel.forward`.
        """
        adapter = _PaddingAdapter(input_ids, attention_mask, cu_seqlens, max_seqlen)
        first_indices = adapter.cu_seqlens[:-1].long()
        # Only [CLS] is read, unless the caller wants to see every token.
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
    """Lets padded and unpadded callers in: strips padding on the way in, puts it back on the way out."""

    def __init__(
        self, input_ids: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None, max_seqlen: int | None
    ) -> None:
        self.unpadding: Unpadding | None = None
        self.shape = input_ids.shape
        if cu_seqlens is not None:
            if input_ids.ndim != 1 or attention_mask is not None:
                raise ValueError(
                    f"input_ids has shape {tuple(input_ids.shape)}; with cu_seqlens give (T,) and no attention_mask."
                )
            self.cu_seqlens = cu_seqlens
            self.max_seqlen = int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen
            return
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; give (B, S), or (T,) and cu_seqlens.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; "
                "the two must be equal."
            )
        self.unpadding = compute_unpadding(attention_mask)
        self.cu_seqlens, self.max_seqlen = self.unpadding.cu_seqlens, self.unpadding.max_seqlen

    def unpad(self, padded: Any, name: str = "input_ids") -> Any:
        if padded is not None and padded.shape != self.shape:
            raise ValueError(
                f"{name} has shape {tuple(padded.shape)}, input_ids {tuple(self.shape)}; the two must be equal."
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


def _format_names(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    suffix = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} weights {kind} ({', '.join(names[:3])}{suffix}); "
