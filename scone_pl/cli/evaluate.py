"""`python -m scone_pl evaluate`, `judge` and `tables`: the paper's Tables 2 and 3 with your row in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scone_pl.cli.command import separated
from scone_pl.cli.pairwise import PAIRWISE, compare_pairs
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.benchmarks import find_benchmark
from scone_pl.evaluation.folder import EvaluationFolder, check_tables_output, name_of_scores
from scone_pl.evaluation.items import Item, read_items
from scone_pl.evaluation.judge_config import JudgeOptions
from scone_pl.evaluation.records import Record, read_records
from scone_pl.evaluation.rows import (
    ScoredModel,
    name_of_checkpoint,
    of_items,
    read_models,
    summarise,
)
from scone_pl.evaluation.steps import (
    as_json,
    check_judge,
    describe_plan,
    plan_judgements,
    print_json,
    print_line,
    tables_markdown,
    write_tables,
)
from scone_pl.evaluation.steps import judge as run_judge
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole

Step = Literal["generate", "judge", "tables"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Options of `evaluate` and `judge`: which items, and how often they are generated and judged."""

    benchmark: str
    """sconeeval, omnicontext, micon, multibanana, or a module that holds a BENCHMARK."""
    data: str
    """Folder of the benchmark in its published layout."""
    output: str
    """Folder of the evaluation: images (round_1, round_2, ...), answers, scores, tables."""
    rounds: int = 3
    """Images for each item; of those that are there already, at most so many are judged."""
    scorings: int = 3
    """Times that each image is judged."""
    tasks: list[str] | None = None
    """Only these tasks; then there is no average."""
    limit: int | None = None
    """Maximum number of items of each task."""
    language: str | None = None
    """Only items of this instruction_language, such as en."""
    max_references: int | None = None
    """Only items with at most this many references; other columns of the table stay empty."""
    images: list[str] | None = None
    """Folders of images generated elsewhere (TASK/KEY.png), one per sampling; then nothing is generated."""

    def __post_init__(self) -> None:
        for name in ("rounds", "scorings", "limit", "max_references"):
            if (number := getattr(self, name)) is not None:
                check_whole(f"--{name}", number, minimum=1, maximum=1_000_000)

    def items(self, benchmark: Benchmark) -> list[Item]:
        """Those that are chosen.

        Raises:
            UserError: see `read_items`.
        """
        return read_items(
            benchmark,
            self.data,
            tasks=separated(self.tasks),
            limit=self.limit,
            language=self.language,
            max_references=self.max_references,
            say=print_line,
        )


def evaluate(
    selection: Selection,
    checkpoint: str | None = None,
    lora: list[str] | None = None,
    lora_scale: list[float] | None = None,
    quantization: Literal["int8", "nf4"] | None = None,
    only: Step | None = None,
    seed: int = 1234,
    name: str | None = None,
    compare: list[str] | None = None,
    judge: JudgeOptions = JudgeOptions(),  # noqa: B008 (immutable)
    extra: list[str] | None = None,
) -> int:
    """Generate a benchmark's images, have them judged, and write the tables; run the same command again to resume.

    Args:
        selection: which items, and how often.
        checkpoint: Folder of weights to generate with, or an id on the Hugging Face hub.
        lora: LoRA adapter to merge into the weights, a folder in peft's layout or an id on the hub; repeat it for
            several.
        lora_scale: Weight of each adapter, in their order; by default 1.
        quantization: int8 or nf4 weights in the decoder layers, see docs/sampling.md.
        only: Run only this step.
        seed: Seed of the initial noise.
        name: What to call the model in tables; by default the checkpoint's folder.
        compare: scores.jsonl of other models on the same data, for rows of their own and a paired comparison.
        judge: Endpoint and model; or the name of a preset (local, local-8b, llamacpp, ollama), or a YAML file.
        extra: arguments for `predict`; type them after a lone --.
    """
    chosen = find_benchmark(selection.benchmark)
    check_whole("--seed", seed)
    generating = only in (None, "generate") and not selection.images
    folder = EvaluationFolder.open(selection.output, selection.images, reuse=not generating)
    folder.check_writable()
    if generating and checkpoint is None:
        raise UserError("--checkpoint: give the folder of weights to generate with (or --only judge, --images DIR)")
    from scone_pl.checkpoints.adapters import adapters_of  # imports torch, which judging and tables do without

    adapters = [dataclasses.asdict(adapter) for adapter in adapters_of(lora, lora_scale)]
    if adapters and not generating:
        raise UserError("--lora: adapters are for generating, which is not done here")
    if quantization is not None and not generating:
        raise UserError("--quantization: is for generating, which is not done here")
    if extra and not generating:
        raise UserError(f"{extra[0]}: what comes after -- is for generating, which is not done here")
    items = selection.items(chosen)
    ids = {item.id for item in items}
    others = [
        ScoredModel(one.name, of_items(one.records, ids, one.name))
        for one in read_models(compare or [], chosen, selection.language)
    ]
    config = None
    if only in (None, "judge"):
        config = judge.resolved(chosen.judge)
        check_judge(config, chosen, items)
        if not folder.answers.exists():  # with stored answers no key may be needed
            config.key()
    rank = None
    if generating and checkpoint is not None:
        from scone_pl.evaluation.generate import generate, launched_rank

        rank = launched_rank()
    folder.check(chosen)
    if generating and checkpoint is not None:
        generate(
            folder,
            items,
            checkpoint,
            selection.rounds,
            seed=seed,
            exif_orientation=judge.exif_orientation,
            arguments=[
                *(("--model.init_args.adapters", json.dumps(adapters)) if adapters else ()),
                *(("--model.init_args.quantization", quantization) if quantization else ()),
                *(extra or []),
            ],
            predict=_predict,
        )
        if rank:
            return 0
    # Not before: a checkpoint that is refused, because the images are another's, must not give them its name.
    name = name or (name_of_checkpoint(checkpoint) if checkpoint else None)
    about = folder.begin(chosen, name=name, checkpoint=checkpoint, data=str(chosen.data_file(selection.data)))
    status = 0
    if config is not None:
        judgements = plan_judgements(folder, chosen, items, config, selection.rounds, selection.scorings)
        status = _status(chosen, run_judge(folder, chosen, judgements, config))
    if only in (None, "tables"):
        records = of_items(read_records(folder.scores, chosen, selection.language), ids, str(folder.scores))
        evaluated = ScoredModel(about.get("name") or Path(selection.output).name, records)
        summaries, comparisons = summarise(evaluated, others, chosen, 0)
        plots = write_tables(folder.tables, summaries, comparisons)
        from scone_pl.evaluation.report import write_report

        write_report(folder.report, summaries[0], items, records, folder.image, plots)
        print_line(tables_markdown(summaries, comparisons))
        print_line(f"tables and plots: {folder.tables}   report: {folder.report}")
    return status


def judge(
    selection: Selection,
    pairwise: list[str] | None = None,
    dry_run: bool = False,
    judge: JudgeOptions = JudgeOptions(),  # noqa: B008 (immutable)
) -> int:
    """Have images judged: everything that has no stored answer yet is asked, then scores.jsonl is written anew.

    Args:
        selection: which items, and how often.
        pairwise: Folders of images (TASK/KEY.png) of several models, as FOLDER or NAME=FOLDER; each pair of images is
            compared in both orders, and pairwise.md and pairwise.json with Elo ratings are written instead of scores.
        dry_run: Only count the questions and what they have cost so far.
        judge: Endpoint and model; or the name of a preset (local, local-8b, llamacpp, ollama), or a YAML file.
    """
    if pairwise is not None and selection.images is not None:
        raise UserError("--images is for scores; with --pairwise name the folders there")
    chosen, folder = find_benchmark(selection.benchmark), EvaluationFolder.open(selection.output, selection.images)
    if not dry_run:
        folder.check_writable()
        check_output_folder(folder.path, files=PAIRWISE if pairwise is not None else ())
    items = selection.items(chosen)
    config = judge.resolved(chosen.judge)
    check_judge(config, chosen, items)
    if pairwise is not None:
        return compare_pairs(folder, chosen, items, pairwise, config, selection.scorings, dry_run=dry_run)
    judgements = plan_judgements(folder, chosen, items, config, selection.rounds, selection.scorings)
    if dry_run:
        print_line(describe_plan(folder, judgements, config))
        return 0
    folder.begin(chosen, data=str(chosen.data_file(selection.data)))
    return _status(chosen, run_judge(folder, chosen, judgements, config))


def tables(
    benchmark: str,
    scores: str,
    output: str | None = None,
    json: bool = False,
    language: str | None = None,
    name: str | None = None,
    compare: list[str] | None = None,
    seed: int = 0,
) -> int:
    """Print the tables of a file of scores, beside the paper's rows.

    Args:
        benchmark: sconeeval, omnicontext, micon, multibanana, or a module that holds a BENCHMARK.
        scores: JSONL of records, such as an evaluation's scores.jsonl.
        output: Folder for table.md, table.tex, table.json and the plots; by default nothing is written.
        json: Print everything as JSON (groups, combined, intervals, stability, ...).
        language: Only records of this instruction_language.
        name: What to call the model.
        compare: Scores of other models on the same data, for rows of their own and a paired comparison.
        seed: Seed of the bootstrap.
    """
    chosen = find_benchmark(benchmark)
    check_whole("--seed", seed)
    if output is not None:
        check_tables_output(Path(output))
    records = read_records(scores, chosen, language)
    others = read_models(compare or [], chosen, language)
    model = ScoredModel(name or name_of_scores(Path(scores)), records)
    summaries, comparisons = summarise(model, others, chosen, seed)
    if output is not None:
        write_tables(Path(output), summaries, comparisons)
    if json:
        print_json(as_json(summaries, comparisons))
    else:
        print_line(tables_markdown(summaries, comparisons))
    return 0


def _predict(command: list[str]) -> int:
    from scone_pl.cli.stages import main

    return main(command)


def _status(benchmark: Benchmark, records: Sequence[Record]) -> int:
    """Exit status: 1 if no image could be judged, so that scripts do not continue with empty tables."""
    return 0 if any(benchmark.is_complete(record) for record in records) else 1
