"""What a run does from its recipe to its Hugging Face folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mosaicbert.batch import MicroBatch
from mosaicbert.config import ConfigError, ModelConfig
from mosaicbert.config.load import load_recipe
from mosaicbert.data.prepare.pipeline import check_store, prepare
from mosaicbert.model.factory import build_model
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.composer_model import MaskedLmComposerModel, data_spec
from mosaicbert.train.resolve import check_num_processes
from mosaicbert.train.run_folder import RunFolder, create_run_folder
from tests.data.corpus import texts, write_jsonl
from tests.data.loaders import train_loader_of
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import evaluations_of, finish, losses_of, pretrain_here, start, train_here, wait_for

_RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_a_run_leaves_a_folder_that_explains_itself(finished):
    recipe, run, _ = finished
    assert load_recipe(run.recipe) == recipe
    environment = json.loads(run.environment.read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    result = json.loads(run.result.read_text())
    assert result["steps"] == 6
    assert run.loss_figure.read_bytes().startswith(b"\x89PNG")
    assert (run.hugging_face / "model.safetensors").is_file()


def test_every_step_logs_loss_rate_and_speed(finished):
    _, run, _ = finished
    steps = [line for line in read_metrics(run.metrics) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 6 + 1))
    for line in steps:
        assert np.isfinite(line["loss"])
        assert line["tokens_per_second"] > 0
        assert 0 < line["mfu"] < 1.5


def test_every_step_logs_how_full_it_was_how_much_was_masked_and_how_long_it_waited(finished):
    recipe, run, _ = finished
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    steps = train_loader_of(recipe, 0, 1)
    assert [line["num_masked"] for line in lines] == [
        sum(int((batch.labels != -100).sum()) for batch in step.micro_batches) for step in steps
    ]
    for line, step in zip(lines, steps, strict=True):
        real = sum(int(batch.cu_seqlens[batch.num_sequences]) for batch in step.micro_batches)
        room = sum(len(batch.input_ids) for batch in step.micro_batches)
        assert line["fill_rate"] == round(real / room, 4)
        assert 0 < line["data_wait_seconds"] < line["seconds"]


def test_tokens_and_samples_are_counted_without_filler(finished):
    recipe, run, _ = finished
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    steps = [step.micro_batches for step in train_loader_of(recipe, 0, 1)]
    tokens = np.cumsum([sum(int(batch.cu_seqlens[batch.num_sequences]) for batch in step) for step in steps])
    assert [line["tokens"] for line in lines] == tokens.tolist()
    assert [line["samples"] for line in lines] == [16 * step for step in range(1, len(steps) + 1)]


def test_the_result_sums_up_how_full_micro_batches_were_and_how_long_the_run_waited(finished):
    _, run, _ = finished
    result = json.loads(run.result.read_text())
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    assert result["fill_rate"] == pytest.approx(np.mean([line["fill_rate"] for line in lines]), abs=1e-4)
    assert result["data_wait_seconds"] == pytest.approx(sum(line["data_wait_seconds"] for line in lines), abs=0.006)


def test_the_console_shows_attention_precision_progress_and_filled_masks(finished):
    recipe, _, printed = finished
    for expected in ("attention: ", "precision: float32", "tokens/s", "MFU", "validation loss", "unigram entropy"):
        assert expected in printed
    assert recipe.eval.fill_mask[0] in printed


def test_the_learning_rate_warms_up_to_its_peak_and_decays(source, tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        source,
        train={"duration": "10 steps"},
        optimizer={"peak_lr": 1e-3, "warmup_fraction": 0.5, "final_lr_fraction": 0.1},
    )
    rates = [line["lr"] for line in read_metrics(train_here(recipe).metrics) if "lr" in line]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 8.2e-4, 6.4e-4, 4.6e-4, 2.8e-4, 1e-4])


def test_a_finished_run_is_not_trained_again(finished, console):
    recipe, run, _ = finished
    before = run.metrics.read_bytes()
    pretrain_here(recipe, console)
    assert run.metrics.read_bytes() == before
    assert "this run is finished" in console.export_text()


def test_two_processes_train_as_one_does(finished, source, tmp_path):
    _, alone, _ = finished
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 2}, checkpoint={"interval": "6 steps"})
    printed = finish(start(recipe))
    together = RunFolder(recipe.run_folder)
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-5)
    assert evaluations_of(together) == pytest.approx(evaluations_of(alone), rel=1e-5)
    assert "2 process(es)" in printed
    assert (together.hugging_face / "model.safetensors").is_file()


def test_a_rank_that_fails_ends_the_others_and_is_named(source, tmp_path):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 2, "duration": "1000000 steps"})
    process = start(recipe)
    wait_for((recipe.run_folder / "metrics.jsonl").exists, process)
    ranks = psutil.Process(process.pid).children()
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").kill()
    assert "rank 1 exited with code -9" in finish(process, code=128 + 9)
    assert not any(rank.is_running() for rank in ranks)


def test_micro_batches_are_moved_to_the_device():
    batch = MicroBatch(
        input_ids=torch.zeros(3, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
        max_seqlen=3,
        masked_indices=torch.tensor([1]),
        labels=torch.tensor([2]),
        num_tokens=3,
        num_sequences=1,
        num_masked=1,
    )
    moved = data_spec([], "meta").microbatch_transforms(batch)
    assert {tensor.device.type for tensor in vars(moved).values() if isinstance(tensor, torch.Tensor)} == {"meta"}


def _trainee(architecture):
    torch.manual_seed(5)
    model = build_model(ModelConfig(**(TINY_MODEL | {"architecture": architecture, "initializer_range": 0.2})))
    return MaskedLmComposerModel(model.double().eval(), cpu_autocast=torch.float32)


def _without_filler(batch):
    tokens, sequences, masked = batch.num_tokens, batch.num_sequences, batch.num_masked
    return replace(
        batch,
        input_ids=batch.input_ids[:tokens],
        cu_seqlens=batch.cu_seqlens[: sequences + 1],
        masked_indices=batch.masked_indices[:masked],
        labels=batch.labels[:masked],
    )


def _loss_and_gradients(trainee, shares):
    trainee.zero_grad()
    loss = sum(share() for share in shares)
    loss.backward()
    found = {name: parameter.grad for name, parameter in trainee.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach()} | {name: gradient.clone() for name, gradient in found.items()}


def _assert_equal_but_for_rounding(ours, theirs, terms):
    # The loss is a sum of `terms` numbers in fp32, whatever the model computes in; some gradients are sums to zero.
    unit = terms * torch.finfo(torch.float32).eps
    largest = max(float(values.abs().max()) for values in theirs.values())
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, rtol=unit, atol=unit * largest, msg=name)


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_filler_changes_neither_loss_nor_gradients(architecture, finished):
    recipe, _, _ = finished
    trainee = _trainee(architecture)
    filled, plain = next(
        (batch, plain)
        for step in train_loader_of(recipe, 0, 1)
        for batch in step.micro_batches
        for plain in [_without_filler(batch)]
        if all(more > less for more, less in zip(batch.shape, plain.shape, strict=True))
    )
    ours, theirs = (
        _loss_and_gradients(trainee, [lambda batch=batch: trainee.loss(trainee(batch), batch)])
        for batch in (filled, plain)
    )
    _assert_equal_but_for_rounding(ours, theirs, filled.num_masked)


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_the_loss_is_the_sum_over_the_real_masked_tokens_and_those_right_are_counted(architecture, finished):
    recipe, _, _ = finished
    trainee = _trainee(architecture)
    batch = next(iter(train_loader_of(recipe, 0, 1))).micro_batches[-1]
    logits, labels = trainee.eval_forward(_without_filler(batch)).detach(), batch.labels[: batch.num_masked]
    wanted = -logits.log_softmax(-1)[torch.arange(batch.num_masked), labels].sum()
    loss, num_right = trainee(batch)
    assert float(trainee.loss((loss, num_right), batch)) == pytest.approx(float(wanted), rel=1e-5)
    assert num_right == (logits.argmax(dim=-1) == labels).sum()


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
@pytest.mark.parametrize("world_size, micro_batch_tokens", [(1, 64), (2, 256), (3, 100), (8, 4096)])
def test_a_global_batch_has_one_loss_and_one_gradient_however_it_is_divided(
    world_size, micro_batch_tokens, architecture, finished
):
    recipe, _, _ = finished
    trainee = _trainee(architecture)

    def compute(ranks, tokens):
        cut = replace(recipe, train=replace(recipe.train, micro_batch_tokens=tokens))
        steps = [next(iter(train_loader_of(cut, rank, ranks))) for rank in range(ranks)]
        shares = [
            lambda batch=batch, masked=step.global_masked: trainee.loss(trainee(batch), batch) / masked
            for step in steps
            for batch in step.micro_batches
        ]
        return _loss_and_gradients(trainee, shares), steps[0].global_masked

    ours, masked = compute(world_size, micro_batch_tokens)
    theirs, _ = compute(1, 4096)
    _assert_equal_but_for_rounding(ours, theirs, masked)


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_a_micro_batch_without_a_masked_token_has_a_loss_of_zero(architecture, finished):
    recipe, _, _ = finished
    trainee = _trainee(architecture)
    batch = next(iter(train_loader_of(recipe, 0, 1))).micro_batches[0]
    empty = replace(
        batch,
        masked_indices=torch.zeros_like(batch.masked_indices),
        labels=torch.full_like(batch.labels, -100),
        num_masked=0,
    )
    found = _loss_and_gradients(trainee, [lambda: trainee.loss(trainee(empty), empty)])
    assert all(not values.any() for values in found.values())


def test_more_processes_than_samples_are_refused(finished):
    recipe, _, _ = finished
    record = check_store(recipe)
    with pytest.raises(ConfigError, match="each of the 17 processes, got 16"):
        check_num_processes(recipe, record, 17)
    wide = replace(recipe, train=replace(recipe.train, global_batch_samples=96))
    with pytest.raises(ConfigError, match="validation sample for each of the 90 processes"):
        check_num_processes(wide, record, 90)


def test_a_line_of_metrics_that_a_crash_cut_off_is_left_out(finished, tmp_path):
    _, run, _ = finished
    torn = tmp_path / "metrics.jsonl"
    torn.write_text(run.metrics.read_text() + '{"step": 7, "lo')
    assert read_metrics(torn) == read_metrics(run.metrics)


@pytest.mark.slow
def test_the_quickstart_ends_clearly_below_the_unigram_entropy(tmp_path, console):
    recipe = load_recipe(_RECIPES[0].parent / "quickstart.yaml", [f"runs_folder={tmp_path}"])
    result = json.loads(pretrain_here(recipe, console).result.read_text())
    assert result["eval_loss"] < result["unigram_entropy"] - 0.5


def test_the_cut_into_micro_batches_does_not_change_the_loss(finished, source, tmp_path):
    _, fine, _ = finished
    coarse = train_here(tiny_recipe(tmp_path, source, train={"micro_batch_tokens": 4096}))
    assert losses_of(coarse) == pytest.approx(losses_of(fine), rel=1e-4)
    assert evaluations_of(coarse) == pytest.approx(evaluations_of(fine), rel=1e-4)


def test_bf16_on_the_cpu_follows_fp32(finished, source, tmp_path):
    _, exact, _ = finished
    rounded = train_here(tiny_recipe(tmp_path, source, train={"precision": "bf16"}))
    assert losses_of(rounded) != losses_of(exact)
    assert losses_of(rounded) == pytest.approx(losses_of(exact), rel=2e-2)


def test_training_learns(source, tmp_path):
    recipe = tiny_recipe(
        tmp_path, source, train={"duration": "60 steps"}, optimizer={"peak_lr": 1e-2}, eval={"interval": "60 steps"}
    )
    losses = losses_of(train_here(recipe))
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("path", _RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_three_steps_with_a_small_model(path, tmp_path):
    names = list(load_recipe(path).data.sources)
    growing = load_recipe(path).train.initial_batch_samples is not None
    for number, name in enumerate(names):
        write_jsonl(tmp_path / f"{name}.jsonl", texts()[number :: len(names)])
    recipe = load_recipe(
        path,
        [
            f"runs_folder={tmp_path}",
            *(
                f"data.sources.{name}.{key}"
                for name in names
                for key in (f"path={tmp_path / name}.jsonl", "subset=null", "validation_split=null", "text_column=text")
            ),
            "data.num_partitions=1",
            "data.validation_fraction=0.2",
            f"data.store={tmp_path / 'store'}",
            "data.num_workers=0",
            "tokenizer.source=train",
            "model.vocab_size=512",
            "model.hidden_size=48",
            "model.num_hidden_layers=2",
            "model.num_attention_heads=3",
            "model.intermediate_size=64",
            "train.duration=3 steps",
            "train.global_batch_samples=8",
            "train.compile=false",  # tested by itself: it takes tens of seconds
            "train.cuda_graphs=false",
            "log.interval_steps=1",
            "log.loggers=[tensorboard]",  # Weights & Biases is not reached from here
            *(["train.initial_batch_samples=4"] if growing else []),
        ],
    )
    losses = losses_of(train_here(recipe))
    assert len(losses) == 3
    assert np.isfinite(losses).all()


def test_recipes_are_named_after_their_files():
    assert _RECIPES
    for path in _RECIPES:
        assert load_recipe(path).run_name == path.stem


def test_a_folder_of_another_recipe_is_refused_with_the_keys_that_differ(finished, console):
    recipe, run, _ = finished
    before = run.metrics.read_bytes()
    other = replace(recipe, seed=18, model=replace(recipe.model, num_hidden_layers=3))
    with pytest.raises(
        ConfigError, match=r"`seed` \(17 there, 18 now\), `model\.num_hidden_layers` \(2 there, 3 now\)"
    ):
        pretrain_here(other, console)
    assert run.metrics.read_bytes() == before


def test_a_run_does_not_go_on_with_a_store_of_other_text(source, tmp_path, console):
    recipe = tiny_recipe(tmp_path, source, data={"store": str(tmp_path / "store")})
    create_run_folder(recipe, prepare(recipe))
    shutil.rmtree(tmp_path / "store")
    source = write_jsonl(tmp_path / "other.jsonl", texts()[:100])
    other = replace(recipe, data=replace(recipe.data, sources=tiny_recipe(tmp_path, source).data.sources))
    prepare(other)
    store_record = (
        (tmp_path / "store" / "store.json").read_text().replace(str(source), recipe.data.sources["text"].path)
    )
    (tmp_path / "store" / "store.json").write_text(store_record)
    with pytest.raises(ConfigError, match="resumed with the token store that it began with"):
        pretrain_here(recipe, console)


def test_a_store_may_move_between_sittings(finished, console, tmp_path):
    recipe, _, _ = finished
    shutil.copytree(recipe.store_folder, tmp_path / "nearer")
    pretrain_here(replace(recipe, data=replace(recipe.data, store=str(tmp_path / "nearer"))), console)
    assert "this run is finished" in console.export_text()


def test_keys_that_only_move_work_about_may_change_between_sittings(finished, console):
    recipe, _, _ = finished
    cut = replace(recipe.train, micro_batch_tokens=64)
    pretrain_here(replace(recipe, data=replace(recipe.data, num_workers=1), train=cut), console)
    assert "this run is finished" in console.export_text()
