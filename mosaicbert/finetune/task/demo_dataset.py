"""Demo task: classify documentation texts by the installed package that they come from."""

import re
from collections import defaultdict

from mosaicbert.data.prepare.demo_corpus import read_package_documentation
from mosaicbert.data.prepare.tokenize import hash_text
from mosaicbert.finetune.tables import Examples

_NUM_PACKAGES = 12
_MIN_CHARACTERS = 80
_REPLACEMENT = "package"


def read_demo_examples(max_texts_per_package: int = 200) -> tuple[Examples, list[str]]:
    """Read documentation texts of the packages with the most texts.

    The result depends only on the installed packages. Each text has the name of its own package replaced by
    "package", because the name would reveal the label.

    Args:
        max_texts_per_package: Maximum number of texts of a package.

    Returns:
        Texts without labels, and the package of each text.
    """
    by_package: defaultdict[str, set[str]] = defaultdict(set)
    for text, package in read_package_documentation():
        anonymous_text = re.sub(re.escape(package), _REPLACEMENT, text, flags=re.IGNORECASE)
        if len(anonymous_text) >= _MIN_CHARACTERS:
            by_package[package].add(anonymous_text)
    largest = sorted(by_package, key=lambda package: (-len(by_package[package]), package))[:_NUM_PACKAGES]
    texts, packages = list[str](), list[str]()
    for package in largest:
        # Ordered by the low bits of the hash, because the high bits select the validation examples.
        selected_texts = sorted(by_package[package], key=lambda text: hash_text(text)[1])[:max_texts_per_package]
        texts += selected_texts
        packages += [package] * len(selected_texts)
    return Examples(texts=(texts,), labels=None), packages
