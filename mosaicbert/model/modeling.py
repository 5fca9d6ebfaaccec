"""Hugging Face model classes with heads, for training and inference."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from mosaicbert.batch import MicroBatch
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.encoder import (
    EncodedBatch,
    MosaicBertModel,
    MosaicBertPreTrainedModel,
    check_shape,
    format_output,
)
from mosaicbert.model.layers import ClassificationHead, MlmHead, classifier_dropout
from mosaicbert.ops.cross_entropy import linear_cross_entropy

_IGNORE_INDEX = -100  # label of tokens without a prediction


class MosaicBertForMaskedLM(MosaicBertPreTrainedModel):
    """MosaicBERT with a masked-language-modeling head, whose decoder weight is tied to the word embeddings."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}  # noqa: RUF012
    _ignored_unexpected_weights = r"^(classifier|qa_outputs|model\.pooler)\."

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
        embedded = self.model.embed(batch.input_ids)
        hidden = self.model.encode(embedded, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices)
        return self.decoder(self.head(hidden))

    def masked_lm_loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute the summed loss of a micro-batch for a training step, without storing all logits.

        Args:
            batch: Unpadded micro-batch with M masked tokens.

        Returns:
            The sum of the cross-entropies at the masked tokens, () fp32, and the number of correct predictions, ()
            int64.
        """
        embedded = self.model.embed(batch.input_ids)
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
        hidden = self.model.encode(embedded, cu_seqlens, max_seqlen, masked_indices)
        return linear_cross_entropy(self.head(hidden), self.decoder.weight, self.decoder.bias, labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Predict tokens of padded or unpadded sequences.

        Args:
            input_ids: See `MosaicBertModel.forward`, as all arguments but labels.
            attention_mask: See `MosaicBertModel.forward`.
            token_type_ids: See `MosaicBertModel.forward`.
            position_ids: See `MosaicBertModel.forward`.
            head_mask: See `MosaicBertModel.forward`.
            inputs_embeds: See `MosaicBertModel.forward`.
            past_key_values: See `MosaicBertModel.forward`.
            labels: int64 in the shape of input_ids, -100 for tokens without a prediction, or None.
            cu_seqlens: See `MosaicBertModel.forward`.
            max_seqlen: See `MosaicBertModel.forward`.
            output_attentions: See `MosaicBertModel.forward`.
            output_hidden_states: See `MosaicBertModel.forward`.
            return_dict: See `MosaicBertModel.forward`.

        Returns:
            logits: (B, S, V) with zeros at padding, or (T, V) for unpadded input. loss: mean cross-entropy of the
            labeled tokens, () fp32, if labels are given. hidden_states and attentions: see `MosaicBertModel.forward`.

        Raises:
            ValueError: See `MosaicBertModel.forward`.
        """
        batch = self.model.encode_batch(
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
        logits = self.decoder(self.head(batch.last))
        output = MaskedLMOutput(
            loss=_token_loss(batch, logits, labels),  # pyright: ignore[reportArgumentType]
            logits=batch.layout.restore(logits),  # pyright: ignore[reportArgumentType]
            hidden_states=batch.hidden_states,  # pyright: ignore[reportArgumentType]
            attentions=batch.attentions,  # pyright: ignore[reportArgumentType]
        )
        return format_output(self.config, output, return_dict)


class MosaicBertForSequenceClassification(MosaicBertPreTrainedModel):
    """MosaicBERT with a tanh pooler on [CLS] and a linear classifier."""

    _ignored_missing_weights = r"^classifier\."
    _ignored_unexpected_weights = r"^(head|decoder|qa_outputs|model\.pooler)\."
    _has_classification_head = True

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 2
        self.model = MosaicBertModel(config)
        self.classifier = ClassificationHead(config, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify padded or unpadded sequences.

        Args:
            input_ids: See `MosaicBertModel.forward`, as all arguments but labels.
            attention_mask: See `MosaicBertModel.forward`.
            token_type_ids: See `MosaicBertModel.forward`.
            position_ids: See `MosaicBertModel.forward`.
            head_mask: See `MosaicBertModel.forward`.
            inputs_embeds: See `MosaicBertModel.forward`.
            past_key_values: See `MosaicBertModel.forward`.
            labels: (B,) int64 classes, (B,) or (B, num_labels) regression targets, (B, num_labels) multi-hot labels, or
                None. config.problem_type selects the loss; if it is None, the loss follows from num_labels and the
                dtype of the labels, as in Hugging Face's BertForSequenceClassification.
            cu_seqlens: See `MosaicBertModel.forward`.
            max_seqlen: See `MosaicBertModel.forward`.
            output_attentions: See `MosaicBertModel.forward`.
            output_hidden_states: See `MosaicBertModel.forward`.
            return_dict: See `MosaicBertModel.forward`.

        Returns:
            logits: (B, num_labels). loss: () fp32, if labels are given. hidden_states and attentions: see
            `MosaicBertModel.forward`.

        Raises:
            ValueError: See `MosaicBertModel.forward`.
        """
        batch = self.model.encode_batch(
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
            first_tokens_only=True,
        )
        logits = self.classifier(batch.last)
        output = SequenceClassifierOutput(
            loss=None if labels is None else _classification_loss(self.config, logits, labels),  # pyright: ignore[reportArgumentType]
            logits=logits,
            hidden_states=batch.hidden_states,  # pyright: ignore[reportArgumentType]
            attentions=batch.attentions,  # pyright: ignore[reportArgumentType]
        )
        return format_output(self.config, output, return_dict)


class MosaicBertForTokenClassification(MosaicBertPreTrainedModel):
    """MosaicBERT with a linear classifier of every token."""

    _ignored_missing_weights = r"^classifier\."
    _ignored_unexpected_weights = r"^(head|decoder|classifier|qa_outputs|model\.pooler)\."

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 2
        self.model = MosaicBertModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Classify the tokens of padded or unpadded sequences.

        Args:
            input_ids: See `MosaicBertModel.forward`, as all arguments but labels.
            attention_mask: See `MosaicBertModel.forward`.
            token_type_ids: See `MosaicBertModel.forward`.
            position_ids: See `MosaicBertModel.forward`.
            head_mask: See `MosaicBertModel.forward`.
            inputs_embeds: See `MosaicBertModel.forward`.
            past_key_values: See `MosaicBertModel.forward`.
            labels: int64 classes in the shape of input_ids, -100 for tokens without a label, or None.
            cu_seqlens: See `MosaicBertModel.forward`.
            max_seqlen: See `MosaicBertModel.forward`.
            output_attentions: See `MosaicBertModel.forward`.
            output_hidden_states: See `MosaicBertModel.forward`.
            return_dict: See `MosaicBertModel.forward`.

        Returns:
            logits: (B, S, num_labels) with zeros at padding, or (T, num_labels) for unpadded input. loss: mean
            cross-entropy of the labeled tokens, () fp32, if labels are given. hidden_states and attentions: see
            `MosaicBertModel.forward`.

        Raises:
            ValueError: See `MosaicBertModel.forward`.
        """
        batch = self.model.encode_batch(
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
        logits = self.classifier(self.dropout(batch.last))
        output = TokenClassifierOutput(
            loss=_token_loss(batch, logits, labels),  # pyright: ignore[reportArgumentType]
            logits=batch.layout.restore(logits),  # pyright: ignore[reportArgumentType]
            hidden_states=batch.hidden_states,  # pyright: ignore[reportArgumentType]
            attentions=batch.attentions,  # pyright: ignore[reportArgumentType]
        )
        return format_output(self.config, output, return_dict)


class MosaicBertForQuestionAnswering(MosaicBertPreTrainedModel):
    """MosaicBERT with a linear layer that scores every token as the start and as the end of the answer."""

    _ignored_missing_weights = r"^qa_outputs\."
    _ignored_unexpected_weights = r"^(head|decoder|classifier|model\.pooler)\."

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.model = MosaicBertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Score the tokens of padded sequences as start and end of the answer.

        Args:
            input_ids: See `MosaicBertModel.forward`, as all arguments but the positions.
            attention_mask: See `MosaicBertModel.forward`.
            token_type_ids: See `MosaicBertModel.forward`.
            position_ids: See `MosaicBertModel.forward`.
            head_mask: See `MosaicBertModel.forward`.
            inputs_embeds: See `MosaicBertModel.forward`.
            past_key_values: See `MosaicBertModel.forward`.
            start_positions: (B,) int64 index of the first token of the answer, or None. Indices outside of the sequence
                are ignored by the loss, as in Hugging Face's BertForQuestionAnswering.
            end_positions: (B,) int64 index of the last token of the answer, or None.
            output_attentions: See `MosaicBertModel.forward`.
            output_hidden_states: See `MosaicBertModel.forward`.
            return_dict: See `MosaicBertModel.forward`.

        Returns:
            start_logits, end_logits: (B, S), the lowest finite value at padding. loss: mean of the cross-entropies of
            start and end, () fp32, if positions are given. hidden_states and attentions: see `MosaicBertModel.forward`.

        Raises:
            ValueError: See `MosaicBertModel.forward`.
        """
        batch = self.model.encode_batch(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            past_key_values,
            None,
            None,
            output_attentions,
            output_hidden_states,
        )
        scores = self.qa_outputs(batch.last)  # (T, 2)
        logits = batch.layout.restore(scores, fill=torch.finfo(scores.dtype).min)  # (B, S, 2)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_position_loss(start_logits, start_positions) + _position_loss(end_logits, end_positions)) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss,  # pyright: ignore[reportArgumentType]
            start_logits=start_logits,  # pyright: ignore[reportArgumentType]
            end_logits=end_logits,  # pyright: ignore[reportArgumentType]
            hidden_states=batch.hidden_states,  # pyright: ignore[reportArgumentType]
            attentions=batch.attentions,  # pyright: ignore[reportArgumentType]
        )
        return format_output(self.config, output, return_dict)


class MosaicBertForMultipleChoice(MosaicBertPreTrainedModel):
    """MosaicBERT with a tanh pooler on [CLS] and a linear layer that scores each choice."""

    _ignored_missing_weights = r"^classifier\."
    _ignored_unexpected_weights = r"^(head|decoder|qa_outputs|model\.pooler)\."
    _has_classification_head = True

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.model = MosaicBertModel(config)
        self.classifier = ClassificationHead(config, num_labels=1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MultipleChoiceModelOutput | tuple[Any, ...]:
        """Score the choices of each example, N padded sequences.

        Args:
            input_ids: (B, N, S) int64, or None if inputs_embeds is given. Otherwise see `MosaicBertModel.forward`.
            attention_mask: (B, N, S), see `MosaicBertModel.forward`.
            token_type_ids: (B, N, S), see `MosaicBertModel.forward`.
            position_ids: (B, N, S), see `MosaicBertModel.forward`.
            head_mask: See `MosaicBertModel.forward`.
            inputs_embeds: (B, N, S, C), see `MosaicBertModel.forward`.
            past_key_values: See `MosaicBertModel.forward`.
            labels: (B,) int64 index of the correct choice, or None.
            output_attentions: See `MosaicBertModel.forward`.
            output_hidden_states: See `MosaicBertModel.forward`.
            return_dict: See `MosaicBertModel.forward`.

        Returns:
            logits: (B, N). loss: mean cross-entropy, () fp32, if labels are given. hidden_states and attentions: see
            `MosaicBertModel.forward`, of B * N sequences.

        Raises:
            ValueError: See `MosaicBertModel.forward`.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is None:
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given, got none. Pass one.")
        num_choices = inputs.shape[1]

        def merge(tensor: Tensor | None) -> Tensor | None:  # (B, N, ...) -> (B * N, ...)
            return None if tensor is None else tensor.flatten(0, 1)

        batch = self.model.encode_batch(
            merge(input_ids),
            merge(attention_mask),
            merge(token_type_ids),
            merge(position_ids),
            head_mask,
            merge(inputs_embeds),
            past_key_values,
            None,
            None,
            output_attentions,
            output_hidden_states,
            first_tokens_only=True,
        )
        logits = self.classifier(batch.last).view(-1, num_choices)
        output = MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),  # pyright: ignore[reportArgumentType]
            logits=logits,
            hidden_states=batch.hidden_states,  # pyright: ignore[reportArgumentType]
            attentions=batch.attentions,  # pyright: ignore[reportArgumentType]
        )
        return format_output(self.config, output, return_dict)


def _token_loss(batch: EncodedBatch, logits: Tensor, labels: Tensor | None) -> Tensor | None:  # logits (T, L)
    if labels is None:
        return None
    check_shape("labels", labels, batch.shape)
    return F.cross_entropy(logits.float(), batch.layout.ignore_padding(labels), ignore_index=_IGNORE_INDEX)


def _position_loss(scores: Tensor, positions: Tensor) -> Tensor:  # (B, S), (B,) -> ()
    length = scores.shape[1]
    return F.cross_entropy(scores.float(), positions.view(-1).clamp(0, length), ignore_index=length)


def _classification_loss(config: MosaicBertConfig, logits: Tensor, labels: Tensor) -> Tensor:
    problem_type = config.problem_type
    if problem_type is None:
        is_class = not labels.is_floating_point()
        problem_type = "single_label_classification" if is_class else "multi_label_classification"
        problem_type = "regression" if config.num_labels == 1 else problem_type
    if problem_type == "regression":
        return F.mse_loss(logits.float().view(-1), labels.float().view(-1))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits.float(), labels.view(-1).long())
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
