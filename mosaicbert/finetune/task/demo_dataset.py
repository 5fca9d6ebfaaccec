"""The quickstart's task: which installed package does a piece of documentation come from?"""

import re
from collections import defaultdict

from mosaicbert.data.prepare.demo_corpus import read_package_documentation
from mosaicbert.data.prepare.tokenize import hash_text
from mosaicbert.finetune.tables import Examples

_NUM_PACKAGES = 12
_MIN_CHARACTERS = 80
_REPLACEMENT = "package"


def read_demo_examples(max_texts_per_package: int = 200) -> tuple[Examples, list[str]]:
    """Texts of the packages that have the most, as many of each; the same for the same environment.

    A package's own name would give it away: wherever it stands, it is replaced by "package".

    Args:
        texts_per_package: at most.

    Returns:
        The texts without labels, and the package of each.
    """
    by_package: defaultdict[str, set[str]] = defaultdict(set)
    for text, package in read_package_documentation():
        anonymous_text = re.sub(re.escape(package), _REPLACEMENT, text, flags=re.IGNORECASE)
        if len(anonymous_text) >= _MIN_CHARACTERS:
            by_package[package].add(anonymous_text)
    largest = sorted(by_package, key=lambda package: (-len(by_package[package]), package))[:_NUM_PACKAGES]
    texts, packages = list[str](), list[str]()
    for package in largest:
        # By the low bits: the high ones decide on what is held out.
        selected_texts = sorted(by_package[package], key=lambda text: hash_text(text)[1])[:max_texts_per_package]
        texts += selected_texts
        packages += [package] * len(selected_texts)
    return Examples(texts=(texts,), labels=None), packages
