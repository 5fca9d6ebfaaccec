"""Layers of the encoder, in the order of the forward pass. All inputs are (T, ...) tokens of concatenated documents."""

import torch
from torch import Tensor, nn

from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.ops.attention import PackedDocuments, PaddedDocuments, alibi_slopes, attend
from mosaicbert.ops.geglu import geglu
from mosaicbert.ops.layer_norm import dropout_add_layer_norm, layer_norm

Documents = PackedDocuments | PaddedDocuments


class LayerNorm(nn.LayerNorm):
    """LayerNorm with an output in the autocast dtype, see `ops.layer_norm.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.weight, self.bias, self.eps)


class ResidualNorm(nn.LayerNorm):
    """Post-norm residual connection: norm(dropout(hidden) + residual), see `ops.layer_norm.dropout_add_layer_norm`."""

    def __init__(self, config: MosaicBertConfig, dropout: float) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = dropout

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        dropout = self.dropout if self.training else 0.0
        return dropout_add_layer_norm(hidden, residual, self.weight, self.bias, self.eps, dropout)


class Embeddings(nn.Module):
    """Embeddings: dropout(norm(word + token type)). Positions are encoded by ALiBi in the attention layers.

    The inputs are word embeddings, so that callers can pass their own.
    """

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor | None) -> Tensor:  # (T, C) -> (T, C)
        types = self.token_type_embeddings
        token_types = types.weight[0] if token_type_ids is None else types(token_type_ids)
        return self.dropout(self.norm(words + token_types))


class Attention(nn.Module):
    """Multi-head self-attention with ALiBi: out(attention(qkv(x))), without residual and norm."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.slopes = alibi_slopes(config.num_attention_heads)

    def forward(self, hidden: Tensor, documents: Documents, output_indices: Tensor | None) -> Tensor:
        qkv = self.qkv(hidden).unflatten(-1, (3, len(self.slopes), -1))  # (T, 3, H, D)
        context = attend(qkv, documents, self.slopes).flatten(1)  # (T, C)
        return self.out(context if output_indices is None else context[output_indices])


class GatedMlp(nn.Module):
    """GEGLU feed-forward network: down(dropout(gelu(gate(x)) * up(x))), without residual and norm."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = config.hidden_dropout_prob

    def forward(self, hidden: Tensor) -> Tensor:  # (T, C) -> (T, C)
        activated = geglu(self.gate_up(hidden), self.dropout if self.training else 0.0)  # (T, F)
        return self.down(activated)


class Layer(nn.Module):
    """Post-norm encoder layer: x = norm(x + dropout(attention(x))), then x = norm(x + mlp(x))."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = ResidualNorm(config, dropout=config.hidden_dropout_prob)
        self.mlp = GatedMlp(config)
        self.mlp_norm = ResidualNorm(config, dropout=0.0)  # the feed-forward network applies its own dropout

    def forward(self, hidden: Tensor, documents: Documents, output_indices: Tensor | None = None) -> Tensor:
        attended = self.attention(hidden, documents, output_indices)
        residual = hidden if output_indices is None else hidden[output_indices]
        hidden = self.attention_norm(attended, residual)
        return self.mlp_norm(self.mlp(hidden), hidden)


class MlmHead(nn.Module):
    """Transform of the masked-language-modeling head, before the decoder: norm(gelu(dense(x)))."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:  # (M, C) -> (M, C)
        return self.norm(nn.functional.gelu(self.dense(hidden)))


class Pooler(nn.Module):
    """Pooler of the first token, [CLS], of each document: tanh(dense(x))."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_tokens: Tensor) -> Tensor:  # (B, C) -> (B, C)
        return torch.tanh(self.dense(first_tokens))


class ClassificationHead(nn.Module):
    """Classifier of the first token, [CLS], of each document: out_proj(dropout(tanh(dense(x)))).

    Pooler and output layer are one module, since PEFT saves and trains the module of the name `classifier`.
    """

    def __init__(self, config: MosaicBertConfig, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = classifier_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, num_labels)

    def forward(self, first_tokens: Tensor) -> Tensor:  # (B, C) -> (B, num_labels)
        return self.out_proj(self.dropout(torch.tanh(self.dense(first_tokens))))


def classifier_dropout(config: MosaicBertConfig) -> nn.Dropout:
    """Return the dropout of a classifier: `classifier_dropout`, or `hidden_dropout_prob` if it is None.

    Args:
        config: Configuration of the model.
    """
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)
