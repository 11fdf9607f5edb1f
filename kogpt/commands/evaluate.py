"""`kogpt evaluate`: few-shot tasks, each row by the likelihood of its answers."""

import argparse
import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import kogpt
from kogpt.adapters import read_adapters, virtual_ids
from kogpt.adapters.head import read_head
from kogpt.architecture import load_architecture, source_fingerprint
from kogpt.box import BOX
from kogpt.checkpoint.dtypes import dtype_name
from kogpt.checkpoint.names import count_parameters
from kogpt.checkpoint.staging import refuse_existing, write_atomically, writing
from kogpt.choices import CALIBRATED
from kogpt.commands.common import (
    check_file,
    load,
    memory_errors,
    option_of,
    print_json,
    processes,
    refuse_below,
)
from kogpt.errors import ParameterError, UsageError
from kogpt.evaluation import (
    Evaluator,
    Journal,
    Prompt,
    Protocol,
    Run,
    Task,
    TaskData,
    comparison_table,
    load_preset,
    load_task,
    make_report,
    preset_names,
    read_data,
    read_report,
    tables,
    task_names,
)
from kogpt.evaluation.data import DATA
from kogpt.evaluation.metrics import require_sklearn
from kogpt.evaluation.plot import draw
from kogpt.evaluation.prompting import CONTENT_FREE, Encoder, ask, example
from kogpt.evaluation.provenance import code, commit, fingerprint, state
from kogpt.evaluation.report import name_of
from kogpt.evaluation.running import draw_set, num_sets, rules_of
from kogpt.fast import FastKoGPT
from kogpt.jsonfiles import to_json
from kogpt.model import KoGPT
from kogpt.model.variants import read_config
from kogpt.notes import say
from kogpt.parallel import Parallel
from kogpt.pictures import require_matplotlib
from kogpt.tokenizer import Tokenizer, load_tokenizer


class Work(NamedTuple):
    """A task, put in one way."""

    task: Task
    prompt: Prompt
    protocol: Protocol
    data: TaskData

    @property
    def reads(self) -> int:
        """Questions that will be put."""
        runs = [dataclasses.replace(self.protocol, shots=(n,)) for n in self.protocol.shots]
        own = CALIBRATED in rules_of(self.protocol, self.prompt) and not self.prompt.fixed
        each = len(self.data.sample) * (1 + len(CONTENT_FREE) * own)
        return each * sum(map(num_sets, runs))


def run(args: argparse.Namespace) -> None:
    refuse_wrong_use(args)
    if args.list:
        print(listing())
    elif args.compare:
        require_sklearn()
        print(comparison_table(*(read_report(Path(path)) for path in args.compare)))
    elif args.show is not None:
        for work in plan(args):
            print("\n\n".join(shown(work, args)))
    else:
        with processes(args) as parallel:
            evaluate(plan(args), args, parallel)


def refuse_wrong_use(args: argparse.Namespace) -> None:
    """Refuses options that would say nothing beside `--list`, `--show` or `--compare`."""
    outputs = {"--output": args.output, "--plot": args.plot, "--json": args.json}
    others = {"TASK": args.tasks, "--data": args.data, "--preset": args.preset, **outputs}
    others |= {"--model": args.model, "--adapter": args.adapter, "--prompt": args.prompt}
    others |= {option_of(name): True for name in given(args)}
    for mode, asked, idle in (
        ("--list", args.list, others),
        ("--compare", args.compare, others),
        ("--show", args.show is not None, outputs),
    ):
        unused = next((name for name, value in idle.items() if value), None)
        if asked and unused:
            raise UsageError(f"argument {unused}: of no use with {mode}")


def plan(args: argparse.Namespace) -> list[Work]:
    """What is asked for; whatever can be seen to be wrong is refused here, before the model."""
    if not args.tasks and not args.preset:
        raise UsageError(f"which task? There are {', '.join(task_names())}, or a .toml file")
    refuse_below(args, show=1)
    tasks = list(map(load_task, named_tasks(args)))
    refuse_repeated("TASK", (task.name for task in tasks))
    refuse_repeated("--prompt", args.prompt or ())
    works = [work for task in tasks for work in works_of(task, args)]
    tokenizer = load_tokenizer(args.model)
    for work in works:
        # The first draw of the most examples tells whether there are enough for all.
        protocol = dataclasses.replace(work.protocol, shots=(max(work.protocol.shots),))
        draw_set(work.task, work.prompt, protocol, work.data, 0, tokenizer)
    return works


def refuse_repeated(argument: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"argument {argument}: {name} is given twice")


def named_tasks(args: argparse.Namespace) -> list[str]:
    if args.preset and not args.tasks:
        return list(load_preset(args.preset).tasks)
    return task_names() if args.tasks == ["all"] else args.tasks


def works_of(task: Task, args: argparse.Namespace) -> Iterator[Work]:
    values = dict(preset_of(args, task))
    prompt = values.pop("prompt", None)
    protocol = Protocol(**{**values, **given(args)})
    data = read_data(task, Path(args.data or DATA), protocol)
    asked = args.prompt or [prompt]
    for each in list(task.prompts) if asked == ["all"] else asked:
        yield Work(task, task.prompt(each), protocol, data)


def preset_of(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What the preset says of a task."""
    if args.preset is None:
        return {}
    preset = load_preset(args.preset)
    if task.name not in preset.tasks:
        raise ParameterError(
            f"preset {preset.name} has no {task.name}; has {', '.join(preset.tasks)}"
        )
    return dict(preset.tasks[task.name])


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The values of a protocol that the command line names."""
    names = {field.name for field in dataclasses.fields(Protocol)}
    values = {k: v for k, v in vars(args).items() if k in names and v is not None}
    if "separator" in values:  # as a shell can say it
        values["separator"] = values["separator"].replace("\\n", "\n").replace("\\t", "\t")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def evaluate(works: list[Work], args: argparse.Namespace, parallel: Parallel) -> None:
    """Runs all, prints the tables and writes the report."""
    check_outputs(args)
    with memory_errors():
        model, tokenizer = load(args, parallel, fast=not args.reference)
        about = describe(model, args)
        # Of equal processes: those that hold one model together must agree on what is known.
        folders = [Path(args.model or BOX), *map(Path, args.adapter)]
        sources = code(), list(map(state, folders)), torch.__version__
        computed_by = about["model"], sources, parallel.device.type
        output = args.output and Path(args.output)
        rank = parallel.data_rank if parallel.leads else None
        if parallel.first and has_head(model, folders[0]):
            say(
                "note: there is the head of a classifier, which no prompt asks: kogpt classify does"
            )
        with closing(Journal(output, repr(computed_by), rank)) as journal:
            if output:
                refuse_existing(output)  # another run may have ended meanwhile
            parallel.wait()  # nobody writes before all have read
            if journal.done and parallel.first:
                say(f"going on: {journal.done} batches are done already")
            runs = run_all(works, Evaluator(model, tokenizer, journal, parallel), parallel.first)
            if not parallel.first:
                return
            report = make_report(runs, about)
            if output:
                with writing(output):
                    write_atomically(output, to_json(report))
                journal.remove()
    print_json(report) if args.json else print(tables(report))
    pictures(report, args)


def has_head(model: KoGPT, folder: Path) -> bool:
    """Whether the head of a classifier came with an adapter, or lies beside the weights."""
    own = None if isinstance(model, FastKoGPT) else type(model)
    return hasattr(model, "score") or read_head(folder, own) is not None


def run_all(works: list[Work], evaluator: Evaluator, speaks: bool) -> list[Run]:
    total = sum(work.reads for work in works)
    with tqdm(total=total, unit="row", disable=None if speaks else True) as bar:
        evaluator.watch = bar
        return [run for work in works for run in evaluator.run(*work)]


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses what could not be written once everything is computed."""
    require_sklearn()
    if args.output:
        refuse_existing(Path(args.output))
        if Path(args.output).is_dir():
            raise UsageError(f"argument --output: is a folder: {args.output}")
        check_file("output", Path(args.output))
    if args.plot:
        require_matplotlib("evaluate")
        if Path(args.plot).exists() and not Path(args.plot).is_dir():
            raise UsageError(f"argument --plot: no folder: {args.plot}")
        try:
            Path(args.plot).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"argument --plot: {args.plot}: {error.strerror}") from None


def pictures(report: dict[str, Any], args: argparse.Namespace) -> None:
    if args.plot:
        for one in report["runs"]:
            draw(one, name_of(report), Path(args.plot))


def describe(model: KoGPT, args: argparse.Namespace) -> dict[str, Any]:
    """What figures depend on besides tasks and protocols."""
    from kogpt.benchmarking import describe_machine

    folder = Path(args.model or BOX)
    own = None if isinstance(model, FastKoGPT) else type(model)
    about = {
        "name": folder.resolve().name,
        "fingerprint": fingerprint(folder),
        "parameters": count_parameters(model.config, own),
        "dtype": dtype_name(model.dtype),
        "network": "fast" if isinstance(model, FastKoGPT) else "reference",
        "tensor_parallel": args.tensor_parallel,
    }
    if args.architecture:
        sha256 = source_fingerprint(args.architecture, model)
        about["architecture"] = {"name": args.architecture.rpartition(":")[2], "sha256": sha256}
    if args.adapter:
        about["adapters"] = [
            {"name": folder.resolve().name, "fingerprint": fingerprint(folder)}
            for folder in map(Path, args.adapter)
        ]
    machine = describe_machine(model.device)
    return {
        "command": shlex.join(("kogpt", *sys.argv[1:])),
        "kogpt": kogpt.__version__,
        "commit": commit(),
        "preset": args.preset and dataclasses.asdict(load_preset(args.preset)),
        "model": about,
        "machine": machine,
    }


def listing() -> str:
    """All tasks with their prompts, and all presets with what is known of them."""
    lines = ["tasks and prompts (the first is the default):"]
    for name in task_names():
        task = load_task(name)
        lines.append(f"  {name}: {task.about}")
        lines += [f"    {prompt.name}: {prompt.source}" for prompt in task.prompts.values()]
    lines += ["", "presets:"]
    for name in preset_names():
        preset = load_preset(name)
        lines.append(f"  {name}: {preset.title} ({', '.join(preset.tasks)})")
        lines += [f"    known: {fact}" for fact in preset.known]
        lines += [f"    assumed: {fact}" for fact in preset.assumed]
    return "\n".join(lines)


def shown(work: Work, args: argparse.Namespace) -> Iterator[str]:
    """The first questions as the model would read them."""
    tokenizer, n_positions, prefix = reader(args)
    encoder = Encoder(tokenizer, n_positions, work.protocol.separator, prefix)
    task, prompt = work.task, work.prompt
    for count in work.protocol.shots:
        protocol = dataclasses.replace(work.protocol, shots=(count,))
        drawn = draw_set(task, prompt, protocol, work.data, 0, tokenizer)
        shots = [example(prompt, row) for row in drawn]
        for row in islice(work.data.sample, args.show):
            question = ask(prompt, row)
            fit = encoder.fit(question, shots)
            if fit is None:
                yield f"=== {task.name}, row {row.index}: exceeds the context, is left out ==="
                continue
            query, fitted = fit
            text = encoder.separator.join([*shots[count - fitted :], question.context])
            answers = " | ".join(question.answers)
            yield (
                f"=== {task.name}, prompt {prompt.name}, {fitted} of {count} shots, row {row.index}"
                f", {query.num_read} tokens, right: {task.labels[row.label]} ===\n"
                f"{text}⟨{answers}⟩"
            )


def reader(args: argparse.Namespace) -> tuple[Tokenizer, int, tuple[int, ...]]:
    """What a prompt depends on of a model: tokenizer, context, and what texts begin with."""
    folder = Path(args.model or BOX)
    own = load_architecture(args.architecture)
    config = read_config(folder / "config.json", own)
    prefix = virtual_ids(read_adapters(args.adapter, config, own), config)
    return load_tokenizer(args.model), config.n_positions, tuple(prefix)
