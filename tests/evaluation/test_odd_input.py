"""Damaged and odd files in front of every reader of the evaluation: a result, or one line that names the file."""

import copy
import json
import random

import pytest

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.omnicontext import OMNICONTEXT
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.records import read_records, write_records
from scone_pl.evaluation.steps import tables_markdown, write_tables
from scone_pl.evaluation.summary import Summary
from scone_pl.vlm.costs import price_of
from scone_pl.vlm.parsing import UnusableAnswerError, parse_presence, parse_score
from scone_pl.vlm.store import Answer, AnswerStore

ODD = [
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    float("nan"),
    "",
    "x",
    "\ud83d",
    "a|b\n",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    10**400,
]


def mutated(value, draw):
    """`value` with one part, however deep, replaced by something odd, removed or doubled."""
    value = copy.deepcopy(value)
    owner, key = None, None
    part = value
    while isinstance(part, dict | list) and part and draw.random() < 0.8:
        owner, key = part, draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
        part = part[key]
    if owner is None:
        return draw.choice(ODD)
    action = draw.random()
    if action < 0.7:
        owner[key] = draw.choice(ODD)
    elif action < 0.85:
        del owner[key]
    elif isinstance(owner, list):
        owner.append(copy.deepcopy(part))
    else:
        owner[str(draw.choice(ODD))] = part
    return value


def damaged(content, draw):
    """Bytes with a flip, a cut, a repetition or foreign bytes."""
    content = bytearray(content)
    at = draw.randrange(len(content))
    action = draw.randrange(5)
    if action == 0:
        content[at] ^= 1 << draw.randrange(8)
    elif action == 1:
        del content[at:]
    elif action == 2:
        content[at:at] = content[at : at + 40]
    elif action == 3:
        content[at:at] = bytes(draw.choices(range(256), k=5))
    else:
        content[at:at] = b"[" * 5000
    return bytes(content)


def one_line(call, named):
    """The result of `call`, or None if it ended in one line that names `named`."""
    message = None
    try:
        return call()
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert str(named) in message
    return None


def try_odd_records(benchmark, whole, folder):
    """Scores with something odd in one record: tables, or one line that names the file."""
    draw, file = random.Random(2), folder / "scores.jsonl"
    for _ in range(60):
        records = copy.deepcopy(whole)
        at = draw.randrange(len(records))
        records[at] = mutated(records[at], draw)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        if (found := one_line(lambda: read_records(file, benchmark), file)) is not None:
            tables_markdown([Summary.of(found, benchmark, "ours")], [])


def records_of(benchmark):
    found = []
    for number, task in enumerate(benchmark.tasks):
        record = {"sampling": 1, "scoring": 1, "key": str(number), "task_type": task, "PF": 7, "SC": 8, "PHY": 5}
        record |= {"PF_reason": "a", "instruction_language": "en", "case_type": "2CS", "failure": None}
        record["judge"] = {"model": "m", "answered_by": ["m"], "prompts": {"PF": "p"}, "date": "2026-01-01"}
        record["generation"] = {"weights": "w", "seed": 1, "round": 0, "sampling": {"num_inference_steps": 4}}
        if "DIS" in benchmark.columns(task):
            record |= {"label": [[1, 0]], "pred": [[1, 0]]}
        found.append(record)
    return found


@pytest.mark.parametrize("benchmark", [SCONEEVAL, OMNICONTEXT], ids=lambda benchmark: benchmark.name)
def test_scores(tmp_path, benchmark):
    draw, whole = random.Random(1), records_of(benchmark)
    for trial in range(150):
        file = tmp_path / "scores.jsonl"
        if trial % 3:
            records = copy.deepcopy(whole)
            at = draw.randrange(len(records))
            records[at] = mutated(records[at], draw)
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            write_records(whole, file)
            file.write_bytes(damaged(file.read_bytes(), draw))
        records = one_line(lambda f=file: read_records(f, benchmark), file)
        if records is not None:
            write_tables(tmp_path / "tables", [Summary.of(records, benchmark, "ours")], [], plots=False)


def test_stored_answers(tmp_path):
    file, draw = tmp_path / "answers.jsonl", random.Random(2)
    with AnswerStore(file) as store:
        for number in range(4):
            store.add(Answer(ask=str(number), text='{"score": 7}', usage={"prompt_tokens": 3}, about={"kind": "PF"}))
    whole = file.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    for trial in range(300):
        changed = "".join(json.dumps(mutated(line, draw) if n == 1 else line) + "\n" for n, line in enumerate(lines))
        file.write_bytes(changed.encode() if trial % 2 else damaged(whole, draw))
        store = one_line(lambda: AnswerStore(file), file)
        for answer in store.of("1") if store else ():
            assert answer.text is None or isinstance(answer.text, str)
            assert all(type(count) is int for count in answer.usage.values() if count != answer.usage)


def test_what_an_evaluation_remembers(tmp_path):
    draw = random.Random(3)
    about = {"benchmark": "sconeeval", "name": "m", "checkpoint": "w", "data": "d", "images": ["a", "b"]}
    for _ in range(150):
        file = tmp_path / "evaluation.json"
        file.write_text(json.dumps(mutated(about, draw)))
        one_line(lambda: EvaluationFolder.open(tmp_path, None).check(SCONEEVAL), tmp_path)
    for key in ("images", "pictures"):  # now, and as older versions wrote it
        file.write_text(json.dumps({**{k: v for k, v in about.items() if k != "images"}, key: ["a", "b"]}))
        assert [str(folder) for folder in EvaluationFolder.open(tmp_path, None).image_folders] == ["a", "b"]


def test_prices(tmp_path):
    draw, file = random.Random(4), tmp_path / "prices.yaml"
    for _ in range(150):
        file.write_text(json.dumps(mutated({"m": {"input": 2.0, "output": 8.0, "cached_input": 1}}, draw)))
        price = one_line(lambda: price_of("m", file), file)
        assert price is None or price.of({"prompt_tokens": 10, "completion_tokens": 1}) >= 0


def test_answers():
    draw = random.Random(5)
    good = [b'{"score": 7, "reasoning": "because"}', b"<think>hm</think>1", b'```json\n{"score": [3]}\n```', b"0"]
    for _ in range(1000):
        text = draw.choice(good)
        for _ in range(draw.randint(1, 3)):
            text = damaged(text or b" ", draw)
        for parse, values in ((parse_score, None), (parse_presence, (0, 1))):
            try:
                found = parse(text.decode(errors="surrogateescape"))
            except UnusableAnswerError:
                continue
            assert found in values if values else 0 <= found.value <= 10
