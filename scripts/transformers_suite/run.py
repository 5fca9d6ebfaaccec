"""Run transformers' common model tests on the model classes of this package, and on Hugging Face's BERT.

The tests are those of the source distribution of the installed version, which pip downloads. Modules that
they import and the distribution does not contain are replaced by short ones. The tests of the pipelines require models
of the Hub; those of this package are in tests/libraries. The script exits with an error if a test fails that is not
listed in EXCLUDED with its reason.

Run: pip install parameterized
     python scripts/transformers_suite/run.py [--output docs/results/transformers-tests.jsonl]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree
from collections import Counter
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
MISSING_MODULES = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # Values of settings that every configuration has, other than their defaults.
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "dtype": "float16",
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "chunk_size_feed_forward": 5,
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "regression",
}
""",
}
# Tests whose expectation differs from the documented behavior, with the reason.
_STRICT = "expects a warning for missing weights, which are an error unless strict=False"
_CHECKPOINTING = "requires a base class of layers; here the encoder checkpoints its layers (tests/model/test_inputs.py)"
EXCLUDED = {
    "test_base_model_prefix_loads_base_weights": _STRICT,
    "test_can_set_attention_dynamically": "expects Hugging Face's wording of the error for an unknown backend",
    "test_correct_missing_keys": _STRICT,
    "test_gradient_checkpointing_enable_disable": _CHECKPOINTING,
    "test_model_weights_reload_no_missing_tied_weights": "loads a file without weights, which requires strict=False",
    "test_sdpa_can_dispatch_non_composite_models": "expects the default backend sdpa, the default is auto",
    "test_training_gradient_checkpointing": _CHECKPOINTING,
    "test_training_gradient_checkpointing_use_reentrant_false": _CHECKPOINTING,
    "test_training_gradient_checkpointing_use_reentrant_true": _CHECKPOINTING,
}
_OUTCOMES = ("passed", "failed", "excluded", "skipped")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for a JSON line per model and test")
    parser.add_argument("--source", type=Path, help="downloaded source distribution, to skip the download")
    arguments = parser.parse_args()
    version = metadata.version("transformers")
    with tempfile.TemporaryDirectory() as scratch:
        archive = arguments.source or download(version, Path(scratch))
        tests = unpack(archive, Path(scratch))
        outcomes = {prefix: run_tests(tests, prefix) for prefix in ("Bert", "MosaicBert")}
    for test, (outcome, _) in outcomes["MosaicBert"].items():
        if outcome == "failed" and test in EXCLUDED:
            outcomes["MosaicBert"][test] = ("excluded", EXCLUDED[test])
    lines = [
        {"transformers": version, "model": prefix, "test": test, "outcome": outcome, "message": message}
        for prefix, results in outcomes.items()
        for test, (outcome, message) in results.items()
    ]
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for prefix, results in outcomes.items():
        counts = Counter(outcome for outcome, _ in results.values())
        print(f"{prefix}: " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES))
    results = outcomes["MosaicBert"]
    for test, (outcome, message) in results.items():
        if outcome in ("failed", "excluded"):
            print(f"{test}, {outcome}: {message}")
    for test in EXCLUDED:
        if results.get(test, ("missing", ""))[0] != "excluded":
            print(f"{test} is listed as excluded and does not fail")
    return 1 if any(outcome == "failed" for outcome, _ in results.values()) else 0


def download(version: str, folder: Path) -> Path:
    """Download the source distribution of transformers, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-binary", "transformers", f"transformers=={version}"], cwd=folder, check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests, add the missing modules and the tests of this folder, and return the folder of the tests."""
    with tarfile.open(archive) as source:
        names = [name for name in source.getnames() if "/tests/" in name and name.endswith(".py")]
        source.extractall(folder, [source.getmember(name) for name in names], filter="data")
    tests = next(folder.glob("transformers-*/tests"))
    for name, content in MISSING_MODULES.items():
        (tests / name).parent.mkdir(exist_ok=True)
        (tests / name).write_text(content)
    target = tests / "models" / "encoder"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("common_tests.py"), target / "test_modeling_encoder.py")
    for package in (tests, tests / "models", target, *((tests / name).parent for name in MISSING_MODULES)):
        (package / "__init__.py").touch()
    return tests


def run_tests(tests: Path, prefix: str) -> dict[str, tuple[str, str]]:
    """Run the tests of a model, and return outcome and first line of the message by test."""
    report = tests.parent / f"{prefix}.xml"
    environment = os.environ | {"COMMON_TESTS_PREFIX": prefix, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests.parent)]
    command += ["-n", "2", "-W", "ignore", "--junitxml", str(report), "tests/models/encoder"]
    tested = subprocess.run(command, cwd=tests.parent, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if tested.returncode not in (0, 1) or "collection failure" in report.read_text():
        raise SystemExit(tested.stdout)
    results: dict[str, tuple[str, str]] = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        message = "" if problem is None else problem.get("message", "").strip().split("\n")[0]
        outcome = {None: "passed", "skipped": "skipped"}.get(problem if problem is None else problem.tag, "failed")
        results[case.get("name", "")] = (outcome, message)
    return results


if __name__ == "__main__":
    sys.exit(main())
