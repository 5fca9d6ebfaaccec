"""Model card of an exported folder."""

from typing import Any

from mosaicbert.config import Recipe
from mosaicbert.estimate import count_parameters

# Inputs of MosaicBERT up to this multiple of the length in pretraining have been measured, see docs/huggingface.md.
_MEASURED_LENGTH_FACTOR = 8


def truncation_length(recipe: Recipe) -> int:
    """Return the number of tokens at which the exported tokenizer truncates.

    Position embeddings limit BERT to the length in pretraining. ALiBi has no such limit.

    Args:
        recipe: Training recipe.
    """
    factor = _MEASURED_LENGTH_FACTOR if recipe.model.architecture == "mosaicbert" else 1
    return factor * recipe.data.max_seq_len


def format_model_card(recipe: Recipe, result: dict[str, Any], recipe_yaml: str) -> str:
    """Format the model card: architecture, training data, metrics, usage and recipe.

    Args:
        recipe: Training recipe.
        result: Metrics of the run: tokens, samples, steps, training_seconds, tokens_per_second, unigram_entropy in
            nats, and train_loss, eval_loss in nats and eval_accuracy, each of which may be None.
        recipe_yaml: Text of the recipe file.

    Returns:
        Markdown text with YAML front matter.
    """
    is_mosaicbert = recipe.model.architecture == "mosaicbert"
    tags = ["fill-mask", recipe.model.architecture] + (["custom_code"] if is_mosaicbert else [])
    front_matter = "\n".join(
        ["---", "library_name: transformers", "pipeline_tag: fill-mask", "tags:", *(f"- {tag}" for tag in tags), "---"]
    )
    model_name = "A MosaicBERT" if is_mosaicbert else "A BERT"
    import_line = "import mosaicbert\n" if is_mosaicbert else ""
    remote_code_note = (
        "\nWithout the package, `from_pretrained(folder, trust_remote_code=True)` loads the same model with torch and "
        "transformers only. The folder contains the code.\n"
        if is_mosaicbert
        else ""
    )
    length, factor = truncation_length(recipe), _MEASURED_LENGTH_FACTOR
    length_note = (
        f"\nThe tokenizer truncates at {length:,} tokens, {factor} times as many as in pretraining. The positions are "
        f"ALiBi biases, so\nlonger inputs are possible. The loss of a small model at up to {factor} times its length "
        "is in docs/huggingface.md of the package.\n"
        if is_mosaicbert
        else ""
    )
    return f"""{front_matter}

# {recipe.run_name}

{model_name} encoder with {count_parameters(recipe.model):,} parameters, pretrained from scratch
by masked language modeling on {_format_sources(recipe)}, up to {recipe.data.max_seq_len} tokens per sample.

| | |
|---|---|
| training tokens | {result["tokens"]:,} ({result["samples"]:,} samples, {result["steps"]:,} steps) |
| training time | {result["training_seconds"]:,.0f} s, {result["tokens_per_second"]:,.0f} tokens/s |
| training loss, {recipe.data.mask_rate:.0%} masked | {_format_metric(result["train_loss"], "{:.4f} nats")} |
| validation loss, {recipe.eval.mask_rate:.0%} masked | {_format_metric(result["eval_loss"], "{:.4f} nats")} |
| validation accuracy | {_format_metric(result["eval_accuracy"], "{:.2%} of masked tokens")} |
| unigram entropy of the validation text | {result["unigram_entropy"]:.4f} nats |

## Use

```python
{import_line}from transformers import pipeline

pipeline("fill-mask", model="path/to/this/folder")
```
{remote_code_note}{length_note}
## Recipe

```yaml
{recipe_yaml.strip()}
```
"""


def _format_sources(recipe: Recipe) -> str:
    return ", ".join(f"`{source.path}`" for source in recipe.data.sources.values())


def _format_metric(value: float | None, template: str) -> str:
    return "not evaluated yet" if value is None else template.format(value)
