"""The model card of an exported folder."""

from typing import Any

from mosaicbert.config import Recipe
from mosaicbert.estimate import count_parameters


def format_model_card(recipe: Recipe, result: dict[str, Any], recipe_yaml: str) -> str:
    """README.md of the folder: what the model is, how it was trained, how good it got, how to load it."""
    is_mosaicbert = recipe.model.architecture == "mosaicbert"
    tags = ["fill-mask", recipe.model.architecture] + (["custom_code"] if is_mosaicbert else [])
    front_matter = "\n".join(
        ["---", "library_name: transformers", "pipeline_tag: fill-mask", "tags:", *(f"- {tag}" for tag in tags), "---"]
    )
    model_name = "A MosaicBERT" if is_mosaicbert else "A BERT"
    import_line = "import mosaicbert\n" if is_mosaicbert else ""
    remote_code_note = (
        "\nWithout the package, `from_pretrained(folder, trust_remote_code=True)` gives the same model on any machine "
        "with torch and transformers; the folder carries the code.\n"
        if is_mosaicbert
        else ""
    )
    return f"""{front_matter}

# {recipe.run_name}

{model_name} encoder with {count_parameters(recipe.model):,} parameters, pretrained from scratch
by masked language modelling on {_format_sources(recipe)}, up to {recipe.data.max_seq_len} tokens per sample.

| | |
|---|---|
| tokens trained on | {result["tokens"]:,} ({result["samples"]:,} samples, {result["steps"]:,} steps) |
| training time | {result["training_seconds"]:,.0f} s, {result["tokens_per_second"]:,.0f} tokens/s |
| training loss, {recipe.data.mask_rate:.0%} masked | {_format_metric(result["train_loss"], "{:.4f} nats")} |
| held-out loss, {recipe.eval.mask_rate:.0%} masked | {_format_metric(result["eval_loss"], "{:.4f} nats")} |
| held-out accuracy | {_format_metric(result["eval_accuracy"], "{:.2%} of masked tokens")} |
| unigram entropy of the held-out text | {result["unigram_entropy"]:.4f} nats |

## Use

```python
{import_line}from transformers import pipeline

pipeline("fill-mask", model="path/to/this/folder")
```
{remote_code_note}
## Recipe

```yaml
{recipe_yaml.strip()}
```
"""


def _format_sources(recipe: Recipe) -> str:
    return ", ".join(f"`{source.path}`" for source in recipe.data.sources.values())


def _format_metric(value: float | None, template: str) -> str:
    return "not evaluated yet" if value is None else template.format(value)
