"""The command line: one tree of arguments, and one place that turns errors into exit codes.

Only the standard library is imported here, so `--help` and wrong arguments answer at once; a
command's own module is imported when it runs.
"""

import argparse
import codecs
import errno
import functools
import importlib
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

import kogpt
from kogpt import choices
from kogpt.box import BOX
from kogpt.errors import (
    DISK_FULL,
    KoGPTError,
    NotEnoughResourcesError,
    ParameterError,
    UsageError,
)
from kogpt.notes import say

DESCRIPTION = """\
KoGPT, the Korean GPT-J. Started without a command, it asks for prompts.

Results go to standard output, everything else to standard error."""

EXIT_CODES = """\
exit codes:
  0    done
  1    the operation failed
  2    wrong usage, or a value out of range
  3    an input was refused: damaged, dangerous, or not what it should be
  4    not enough disk or memory
  130  interrupted"""

PROGRAM = "kogpt"
FAILED, USAGE = KoGPTError.exit_code, ParameterError.exit_code
SHORTAGE, INTERRUPTED = NotEnoughResourcesError.exit_code, 130
UNMAPPED = ("failed to map segment", os.strerror(errno.ENOMEM))  # of a library, by its loader


class Parser(argparse.ArgumentParser):
    """Tells what is wrong like any other refusal, and how to be told of all arguments."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("required: PROMPT"):
            message += "; one that begins with - goes behind --"
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    given = sys.argv[1:] if argv is None else argv

    def run() -> int | None:
        try:
            args = parse(with_default_command(given))
        except SystemExit as told:  # the help
            return told.code if isinstance(told.code, int) else FAILED
        refuse_lost_folder()
        with ending_at_once():
            common = importlib.import_module("kogpt.commands.common")
            command = importlib.import_module(f"kogpt.commands.{args.command}")
        common.refuse_empty(args)
        with common.naming_options(common.options_of(args)):
            code: int | None = command.run(args)
        return code

    return exit_code(run)


def refuse_lost_folder() -> None:
    """Refuses to run where no library can load what it loads late: oneMKL ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise KoGPTError("the current folder was removed; cd to one that is there") from None


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Has Ctrl-C end the process: an exception may be lost, or abort, in imports written in C++.

    Also a process that called `main` itself.
    """

    def end(*_: object) -> NoReturn:
        with suppress(OSError):
            os.write(2, f"{PROGRAM}: interrupted\n".encode())
        os._exit(INTERRUPTED)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    else:
        yield


def exit_code(action: Callable[[], int | None], program: str = PROGRAM) -> int:
    """Does something and returns the exit code; errors that are expected are told in one line.

    Args:
        action: returns its own exit code, or None for 0.
        program: who speaks.
    """
    prepare_streams()
    try:
        if sys.stdout is None:
            raise KoGPTError("standard output is closed")
        code = action() or 0
        sys.stdout.flush()  # while there is an exit code to tell of what goes wrong
        return code
    except UsageError as error:
        return fail(f"{error}", USAGE, program)
    except KoGPTError as error:
        return fail(f"{error}", error.exit_code, program)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == PROGRAM:
            raise
        return fail(f"{error.name} is not installed, which this needs", FAILED, program)
    except ImportError as error:
        if (reason := shortage_behind(error)) is None:
            raise
        return fail(f"not enough memory: {reason}", SHORTAGE, program)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED, program)
    except BrokenPipeError:  # whoever read the output has left
        return FAILED
    except MemoryError as error:  # torch's own out-of-memory errors arrive as commands' KoGPTError
        return fail(f"not enough memory: {error}", SHORTAGE, program)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in DISK_FULL
        return fail(f"{where}{error.strerror or error}", SHORTAGE if full else FAILED, program)
    finally:
        let_go_of_output()


def shortage_behind(error: ImportError) -> str | None:
    """What a library's loader said, where an import failed for want of address space."""
    errors: list[BaseException] = [error]
    while cause := errors[-1].__cause__:
        errors.append(cause)
    told = map(str, reversed(errors))  # what others make of it may have many lines
    return next((words for words in told if any(sign in words for sign in UNMAPPED)), None)


def prepare_streams() -> None:
    """Lets nothing that is told fail for how it is told."""
    usual = ("strict", "surrogateescape")  # Python's own, the second in the C locale
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in usual:
        codecs.register_error("kogpt", replace_and_tell)
        tell_of_encoding.cache_clear()
        sys.stdout.reconfigure(errors="kogpt")
    if sys.stderr is None:  # closed; `print` would take standard output instead
        sys.stderr = open(os.devnull, "w")


def replace_and_tell(error: UnicodeError) -> tuple[str | bytes, int]:
    """A question mark for what an output's encoding lacks, which is told once."""
    if isinstance(error, UnicodeEncodeError):
        tell_of_encoding(error.encoding)
    return codecs.replace_errors(error)


@functools.cache
def tell_of_encoding(encoding: str) -> None:
    """Says what became of characters."""
    say(f"{PROGRAM}: the output is in {encoding}: ? stands for a character that it lacks")


def let_go_of_output() -> None:
    """Where a stream cannot be written, gives the interpreter's last flush of it a place to go."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fail(message: str, code: int, program: str = PROGRAM) -> int:
    """Writes one line to standard error and returns the exit code."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    process = os.environ.get("RANK", "0") if several else "0"  # as torchrun counts them
    who = program if process == "0" else f"{program} (process {process})"
    say(f"{who}: {' '.join(message.split())}")
    return code


def with_default_command(argv: Sequence[str]) -> list[str]:
    """Puts `chat` in front of arguments that name no command."""
    tops = ("-h", "--help", "--version")
    if not argv or (argv[0].startswith("-") and argv[0] not in tops):
        return ["chat", *argv]
    return list(argv)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What is asked for.

    Raises:
        UsageError: it is not known here.
    """
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        message = f"unrecognized arguments: {shlex.join(unknown)}"
        takes_text = getattr(args, "prompt", None) is not None
        if takes_text and not any(argument.startswith("-") for argument in unknown):
            message += "; a text with spaces goes in quotes"
        raise UsageError(f"{message} (see {PROGRAM} {args.command} --help)")
    return args


def build_parser() -> argparse.ArgumentParser:
    """The whole tree of arguments."""
    parser = Parser(
        prog="kogpt",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kogpt {kogpt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_generate(commands)
    add_chat(commands)
    add_score(commands)
    add_classify(commands)
    add_tokenize(commands)
    add_convert(commands)
    add_merge(commands)
    add_verify(commands)
    add_inspect(commands)
    add_diff(commands)
    add_lens(commands)
    add_train(commands)
    add_finetune(commands)
    add_plan(commands)
    add_benchmark(commands)
    add_evaluate(commands)
    add_trace(commands)
    return parser


Commands = argparse._SubParsersAction  # the type has no public name


def add_command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="DIR", help="checkpoint folder (default: the one in the box)"
    )
    add_architecture_argument(group)
    group.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="DIR",
        help="adapter of the model, LoRA or a soft prompt; may repeat",
    )
    group.add_argument(
        "--dtype",
        choices=choices.DTYPES,
        help="dtype to compute in (default: the stored one; on a CPU float16 becomes float32)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def add_architecture_argument(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--architecture",
        metavar="FILE.py:CLASS",
        help="a model class of your own, a subclass of KoGPT; runs the file",
    )


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--normalize",
        choices=("auto", "nfc", "none"),
        default="auto",
        help="compose decomposed Hangul (auto), all text (nfc), nothing (none) (default: auto)",
    )


def add_json_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON, nothing else")


def add_generate(commands: Commands) -> None:
    parser = add_command(commands, "generate", "continue a text")
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        help="the text to continue; - reads it from stdin; one that begins with - comes last, after"
        " --",
    )
    add_model_arguments(parser)
    add_text_arguments(parser)
    add_sampling_arguments(parser)
    add_limit_arguments(parser)
    add_speculation_arguments(parser)
    add_reference_argument(parser)
    add_parallel_argument(parser)
    parser.add_argument(
        "--echo",
        action=argparse.BooleanOptionalAction,
        help="print the prompt before its continuation (default: yes, but not with --json)",
    )
    add_json_argument(parser, "one object per sample")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=float, metavar="X", help="0 is greedy (default: 0.8)")
    add("--top-k", type=int, metavar="K", help="keep the K likeliest tokens")
    add("--top-p", type=float, metavar="P", help="keep the likeliest tokens that sum to P")
    add("--min-p", type=float, metavar="P", help="keep tokens at least P times the likeliest")
    add("--typical-p", type=float, metavar="P", help="keep the most typical tokens that sum to P")
    add("--repetition-penalty", type=float, metavar="X", help="divide logits of seen tokens by X")
    add(
        "--presence-penalty",
        type=float,
        metavar="X",
        help="subtract X once a token has been written",
    )
    add(
        "--frequency-penalty",
        type=float,
        metavar="X",
        help="subtract X each time it has been written",
    )
    add("--no-repeat-ngram-size", type=int, metavar="N", help="write no N tokens twice")


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to write, and how much").add_argument
    add(
        "--logit-bias", action="append", metavar="ID=X", help="add X to the logit of ID; may repeat"
    )
    add("--ban", action="append", metavar="TEXT", help="never write TEXT; may repeat")
    add("--stop", action="append", metavar="TEXT", help="end before TEXT; may repeat")
    add(
        "--stop-id", action="append", type=int, metavar="ID", help="end before token ID; may repeat"
    )
    add("--min-new-tokens", type=int, metavar="N", help="write at least N tokens")
    add(
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="write at most N (default: 128)",
    )
    add(
        "-n",
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="continuations to write (default: 1)",
    )
    add("--beams", type=int, metavar="N", help="beam search of this width, instead of sampling")
    add("--length-penalty", type=float, metavar="X", help="exponent of the length in beam scores")
    add(
        "--early-stopping",
        action="store_true",
        default=None,
        help="end a beam search once as many texts have ended as it is wide",
    )
    add("--logprobs", type=int, metavar="N", help="log-probabilities, with N alternatives (--json)")
    add("--seed", type=int, metavar="N", help="the same seed gives the same text")


def add_speculation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guessing ahead: the same text, in fewer passes")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--speculate", choices=("lookup",), help="guess that the text goes on as it did before"
    )
    either.add_argument(
        "--draft-model", metavar="DIR", help="guess with this smaller model of the same vocabulary"
    )
    group.add_argument(
        "--draft-tokens",
        type=int,
        metavar="N",
        help="most tokens to guess at once (default: 7 by lookup, 5 by a model)",
    )


def add_reference_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference",
        action="store_true",
        help="run the readable network, not the one prepared for speed",
    )


def add_parallel_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="N processes of torchrun hold the model together, each a part of it (default: 1)",
    )


def add_chat(commands: Commands) -> None:
    parser = add_command(commands, "chat", "ask for prompts and continue each")
    add_model_arguments(parser)
    add_text_arguments(parser)
    add_speculation_arguments(parser)
    add_reference_argument(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the first continuation")


def add_score(commands: Commands) -> None:
    parser = add_command(commands, "score", "tell how likely the model finds a text")
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help="the text; - reads one text a line from stdin"
    )
    add = parser.add_argument_group("texts out of files, instead of TEXT").add_argument
    add("--data", nargs="+", metavar="FILE", help=".txt or .tsv files, as they are or as .xz")
    add("--column", metavar="NAME", help="column of the text in tables (default: document)")
    add("--limit", type=int, metavar="N", help="score the first N texts")
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="read texts longer than the context in windows, each N tokens behind the one before",
    )
    add_model_arguments(parser)
    add_reference_argument(parser)
    add_text_arguments(parser)
    add_json_argument(parser, "one object per text, and one for all texts of stdin or files,")


def add_classify(commands: Commands) -> None:
    parser = add_command(commands, "classify", "tell what a finetuned classifier takes a text for")
    parser.add_argument(
        "text",
        metavar="TEXT",
        nargs="+",
        help="a text, or the contents of one, such as two to compare; - reads a text a line from"
        " stdin, its contents parted by tabs",
    )
    add_model_arguments(parser)
    add_reference_argument(parser)
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="texts read at once (default: 32)"
    )
    add_json_argument(parser, "one object per text")


def add_tokenize(commands: Commands) -> None:
    parser = add_command(commands, "tokenize", "show the tokens of a text, or the text of ids")
    parser.add_argument("text", metavar="TEXT", help="a text, or ids with --decode; - reads stdin")
    parser.add_argument(
        "--model", metavar="DIR", help="tokenizer's folder (default: the one in the box)"
    )
    parser.add_argument(
        "--decode", action="store_true", help="TEXT is a list of ids; print their text"
    )
    parser.add_argument(
        "--special",
        action="store_true",
        help="let [EOS] and the like in TEXT, not [UNK], be the special token",
    )
    add_text_arguments(parser)
    add_json_argument(parser, "ids and pieces")


def add_convert(commands: Commands) -> None:
    parser = add_command(commands, "convert", "turn a released checkpoint into a safe folder")
    add = parser.add_argument
    add("source", metavar="SRC", help="folder or file of the checkpoint to read")
    add("destination", metavar="DST", help="folder to write; must not exist")
    add("--dtype", choices=choices.DTYPES, help="dtype to store (default: the one of the source)")
    add("--max-shard-size", default="5GB", metavar="SIZE", help="of each file (default: 5GB)")
    add(
        "--config",
        metavar="FILE|PRESET",
        help="shape of the model (default: what config.json of SRC says)",
    )
    add(
        "--on-overflow",
        choices=choices.ON_OVERFLOW,
        default="error",
        help="what to do with values float16 cannot hold (default: error)",
    )
    add(
        "--allow-nonfinite",
        action="append",
        metavar="PATTERN",
        help="let tensors whose names match PATTERN hold NaN or infinity",
    )
    add(
        "--allow-extra",
        action="append",
        metavar="PATTERN",
        help="leave out unknown tensors whose names match PATTERN",
    )
    add("--license-notice", metavar="TEXT", help="licence of the weights (default: the source's)")
    add("--dry-run", action="store_true", help="only tell what would be done")
    add_json_argument(parser, "the report")
    add_quantization_arguments(parser)


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("quantisation").add_argument
    add(
        "--quantize",
        choices=choices.INTEGERS,
        help="store matrices as integers: int8 per row, or int4 in groups, the head int8",
    )
    add("--group-size", type=int, metavar="N", help="inputs of one scale (int4; default: 128)")
    add(
        "--zero-points",
        action="store_true",
        help="let groups lie off zero (int4); the head stays float",
    )


def add_merge(commands: Commands) -> None:
    parser = add_command(commands, "merge", "fold adapters into the weights of a checkpoint")
    parser.add_argument("source", metavar="SRC", help="folder or file of the checkpoint")
    parser.add_argument(
        "adapters", nargs="+", metavar="ADAPTER", help="folder of an adapter of LoRA"
    )
    parser.add_argument("destination", metavar="DST", help="folder to write; must not exist")
    add_architecture_argument(parser)
    add_json_argument(parser, "the report")


def add_verify(commands: Commands) -> None:
    parser = add_command(commands, "verify", "check a converted folder against its manifest")
    parser.add_argument("path", metavar="DIR", help="the folder")
    add_json_argument(parser, "the report")


def add_inspect(commands: Commands) -> None:
    parser = add_command(commands, "inspect", "describe a checkpoint, reading headers only")
    parser.add_argument("path", metavar="DIR|FILE", nargs="?", help="default: the model in the box")
    add_architecture_argument(parser)
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="describe the kernels instead: what was compiled, and which attention a GPU would run",
    )
    add_json_argument(parser, "the report")


def add_diff(commands: Commands) -> None:
    parser = add_command(commands, "diff", "tell what two models differ in, reading headers only")
    what = "preset, config.json or checkpoint"
    parser.add_argument("first", metavar="A", help=what)
    parser.add_argument("second", metavar="B", help=what)
    parser.add_argument(
        "--architecture",
        metavar="FILE.py:CLASS",
        help="the class of B, if it is one of your own, and of A, if no other is; runs the file",
    )
    add_json_argument(parser, "the report")


def add_lens(commands: Commands) -> None:
    parser = add_command(
        commands, "lens", "show where heads look and what each layer would write, for one prompt"
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the text to read; - reads it from stdin")
    add_model_arguments(parser)
    add_text_arguments(parser)
    add = parser.add_argument_group("what comes out").add_argument
    add("--output", metavar="FILE", help="write a page to look at in a browser, all in one .html")
    add("--png", metavar="FILE", help="draw a picture (needs matplotlib)")
    add("--top", type=int, default=5, metavar="N", help="likeliest tokens to keep (default: 5)")
    add("--last", type=int, default=128, metavar="N", help="tokens to show (default: the last 128)")
    add_json_argument(parser, "all weights and predictions")


def add_train(commands: Commands) -> None:
    parser = add_command(commands, "train", "train on the next token, from scratch or a checkpoint")
    parser.add_argument(
        "data",
        nargs="+",
        metavar="FILE",
        help=".txt with a text a line, or .tsv with a header; as they are or as .xz",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--column", metavar="NAME", help="column of the text in tables (default: document)"
    )
    parser.add_argument(
        "--model",
        "--config",
        dest="model",
        metavar="PRESET|FILE|DIR",
        help="shape, or checkpoint to start from; ./nano is a folder (default: nano, the shape)",
    )
    add_architecture_argument(parser)
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="needed from scratch; a checkpoint brings its own"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    add_schedule_arguments(
        parser, batch_size=8, warmup="100 steps", rate="0.001", decay=0.1, beta2=0.95
    )
    add = parser.add_argument
    add("--short-length", type=int, metavar="N", help="cut sequences to this length at first")
    add("--short-part", type=float, metavar="X", help="share of steps cut so (default: 0.5)")
    add(
        "--validation-documents",
        type=int,
        metavar="N",
        help="to measure on, of every 100th text, which is held out; 0: all those (default: 1000)",
    )
    add_computing_arguments(parser)
    add_watching_arguments(parser)


def add_finetune(commands: Commands) -> None:
    parser = add_command(commands, "finetune", "train a model on a task or on examples")
    add = parser.add_argument
    add(
        "--model",
        default=str(BOX),
        metavar="DIR",
        help="checkpoint folder to begin with (default: the model in the box)",
    )
    add_architecture_argument(parser)
    add(
        "--data",
        required=True,
        nargs="+",
        metavar="FILE|TASK",
        help=".jsonl files, or .jsonl.xz, with prompt and completion; or a task: nsmc, TASK.toml",
    )
    add("--data-dir", metavar="DIR", help="folder of the tasks' data (default: data)")
    add("--method", required=True, choices=choices.METHODS, help="what is trained")
    add("--output", required=True, dest="out", metavar="DIR", help="folder of the result")
    add("--resume", action="store_true", help="go on from the newest checkpoint")
    add_method_arguments(parser)
    add_objective_arguments(parser)
    add_schedule_arguments(
        parser, batch_size=32, warmup="a tenth of all", rate="by method", decay=0.01, beta2=0.98
    )
    add_computing_arguments(parser)
    add_watching_arguments(parser)
    add_json_argument(parser, "the results")


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how the methods are done").add_argument
    add(
        "--targets",
        nargs="+",
        metavar="LAYER",
        help="LoRA: of q_proj k_proj v_proj out_proj fc_in fc_out (default: q_proj v_proj)",
    )
    add("--rank", type=int, metavar="N", help="LoRA: of the updates (default: 8)")
    add(
        "--alpha",
        type=float,
        metavar="X",
        help="LoRA: updates are scaled by X / rank (default: 16)",
    )
    add("--dropout", type=float, metavar="X", help="LoRA: of the updates' input (default: 0)")
    add("--virtual-tokens", type=int, metavar="N", help="of a soft prompt (default: 20)")
    add("--encoder", choices=choices.ENCODERS, help="p-tuning: its network (default: lstm)")
    add(
        "--encoder-width",
        type=int,
        metavar="N",
        help="p-tuning: width of its network (default: the model's)",
    )


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is learnt").add_argument
    add(
        "--objective",
        choices=choices.OBJECTIVES,
        help="default: completion of examples, label-words of a task's prompt",
    )
    add("--prompt", metavar="NAME", help="of the task (default: its first)")
    add("--pack", action="store_true", default=None, help="several examples in a row, kept apart")
    add(
        "--validation-rows",
        type=int,
        metavar="N",
        help="about so many, at most a tenth, are held out to choose by (default: 1000)",
    )
    add("--test-rows", type=int, metavar="N", help="of the test split; 0: none (default: all)")
    add("--keep-weights", choices=choices.KEPT, help="by validation (default: best)")


def add_schedule_arguments(
    parser: argparse.ArgumentParser,
    batch_size: int,
    warmup: str,
    rate: str,
    decay: float,
    beta2: float,
) -> None:
    add = parser.add_argument_group("what is computed").add_argument
    add("--epochs", type=float, metavar="X", help="passes over the data (default: 1)")
    add("--steps", type=int, metavar="N", help="optimizer steps, instead of --epochs")
    add("--batch-size", type=int, metavar="N", help=f"rows in a step (default: {batch_size})")
    add("--sequence-length", type=int, metavar="N", help="default: the model's context")
    add("--learning-rate", type=float, metavar="X", help=f"peak (default: {rate})")
    add("--final-learning-rate", type=float, metavar="X", help="share of the peak (default: 0)")
    add("--warmup-steps", type=int, metavar="N", help=f"linear rise (default: {warmup})")
    decayed = f"of AdamW (betas 0.9 and {beta2}), on matrices (default: {decay})"
    add("--weight-decay", type=float, metavar="X", help=decayed)
    add("--gradient-clip", type=float, metavar="X", help="largest gradient norm (default: 1)")
    add("--seed", type=int, metavar="N", help="of weights, data order, dropout (default: 0)")


def add_computing_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it is computed").add_argument
    add("--compile", action="store_true", default=None, help="torch.compile; wants a C++ compiler")
    add_parallel_argument(parser)
    add("--device", help="default: cuda where there is one")
    add_memory_arguments(parser)


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what memory it takes, as kogpt plan tells").add_argument
    add("--precision", choices=choices.PRECISIONS, help="of products (default: float32)")
    add(
        "--weights",
        choices=choices.WEIGHTS,
        help="that are trained: bfloat16 with a float32 copy, or rounded stochastically",
    )
    add("--optimizer", choices=choices.OPTIMIZERS, help="8 bits a moment, by torchao")
    add("--offload", action="store_true", default=None, help="optimizer on the CPU")
    add("--micro-batch-size", type=int, metavar="N", help="sequences at once; gradients accumulate")
    add(
        "--activation-checkpointing",
        action=argparse.BooleanOptionalAction,
        help="less memory, more time",
    )


def add_watching_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it is watched").add_argument
    add("--log-every", type=int, metavar="N", help="steps (default: 10)")
    add("--validate-every", type=int, metavar="N", help="steps; 0: at the end (default: 200)")
    add("--save-every", type=int, metavar="N", help="steps; 0: at the end (default: 200)")
    add("--keep", type=int, metavar="N", help="newest checkpoints to keep (default: 2)")
    add("--curve", action=argparse.BooleanOptionalAction, help="draw the losses (default: yes)")
    add("--tensorboard", action=argparse.BooleanOptionalAction, help="default: where installed")
    add("--license-notice", metavar="TEXT", help="licence of the weights, noted with them")


def add_plan(commands: Commands) -> None:
    parser = add_command(
        commands, "plan", "tell what memory a piece of work takes, loading nothing"
    )
    add = parser.add_argument
    add("--model", metavar="DIR|PRESET|FILE", help="or a config.json (default: the one in the box)")
    add_architecture_argument(parser)
    add(
        "--method",
        required=True,
        choices=(*choices.METHODS, choices.INFERENCE),
        help="what is trained; or inference",
    )
    add(
        "--sequence",
        "--sequence-length",
        dest="sequence_length",
        type=int,
        metavar="N",
        help="tokens, those to be written included (default: the model's context)",
    )
    add(
        "--batch",
        "--batch-size",
        dest="batch_size",
        type=int,
        default=1,
        metavar="N",
        help="rows (default: 1)",
    )
    add("--gpus", type=int, metavar="N", help="0 is the CPU (default: 1 where there is one)")
    add(
        "--memory",
        metavar="SIZE",
        help="of each GPU, or of the CPU, such as 80GB (default: that of this machine)",
    )
    add("--quantize", choices=choices.INTEGERS, help="unless it is stored so already")
    add("--pack", action="store_true", default=None, help="several examples in a row, kept apart")
    add_json_argument(parser, "the plan")
    add_method_arguments(parser)
    add_memory_arguments(parser)


def add_benchmark(commands: Commands) -> None:
    parser = add_command(commands, "benchmark", "time reading and writing, beside what is possible")
    add_model_arguments(parser)
    add = parser.add_argument_group("what is measured").add_argument
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="rows at once (default: 1)")
    add(
        "--prompt-tokens",
        nargs="+",
        type=int,
        default=[32, 512],
        metavar="N",
        help="lengths of prompts (default: 32 512)",
    )
    add("--new-tokens", type=int, default=32, metavar="N", help="to write (default: 32)")
    add("--rounds", type=int, default=3, metavar="N", help="medians are taken of (default: 3)")
    add("--threads", type=int, metavar="N", help="of a CPU (default: torch's own choice)")
    add_reference_argument(parser)
    add_json_argument(parser, "the report")
    parser.add_argument("--plot", metavar="FILE", help="draw the figures: .png, .svg or .pdf")


def add_evaluate(commands: Commands) -> None:
    parser = add_command(commands, "evaluate", "measure a model on few-shot tasks")
    parser.add_argument(
        "tasks",
        nargs="*",
        metavar="TASK",
        help="nsmc, ynat, klue_sts, kobest_boolq, ..., all, or a .toml file (--list tells all);"
        " before options that take several values",
    )
    add_model_arguments(parser)
    add_reference_argument(parser)
    add_parallel_argument(parser)
    add_protocol_arguments(parser)
    add = parser.add_argument_group("what comes out").add_argument
    add("--output", metavar="FILE", help="write the report, with every row's scores, as JSON")
    add("--plot", metavar="DIR", help="draw confusion matrix and calibration of each run")
    add_json_argument(parser, "the report")
    group = parser.add_argument_group("instead of running")
    add = group.add_mutually_exclusive_group().add_argument
    add("--list", action="store_true", help="list tasks, prompts and presets")
    add("--show", type=int, metavar="N", help="print the first N prompts as the model reads them")
    add("--compare", nargs=2, metavar="FILE", help="compare two reports, row by row")


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it is done").add_argument
    add("--data", metavar="DIR", help="folder of the tasks' data (default: data)")
    add("--preset", metavar="NAME", help="a published protocol; other options change it")
    add("--prompt", nargs="+", metavar="NAME", help="of the task, or all (default: its first)")
    add("--shots", nargs="+", type=int, metavar="K", help="examples in the prompt (default: 0)")
    add("--sets", type=int, metavar="N", help="draws of examples, each a score (default: 5)")
    add("--seed", type=int, metavar="N", help="of the draws (default: 0)")
    add("--balanced", action="store_true", default=None, help="as many examples of each label")
    add("--max-shot-tokens", type=int, metavar="N", help="draw only examples as short as this")
    add("--separator", metavar="TEXT", help=r"between examples (default: \n\n)")
    add(
        "--scoring",
        nargs="+",
        choices=choices.RULES,
        help="of log-likelihoods of answers (default: sum, and calibrated or per-token)",
    )
    add("--limit", type=int, metavar="N", help="score a sample of N rows, always the same")
    add("--batch-size", type=int, metavar="N", help="rows read at once (default: 32)")


def add_trace(commands: Commands) -> None:
    parser = add_command(
        commands, "trace", "run a text through two models and find where they part"
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the text that both read; - reads it from stdin")
    add("--model", metavar="DIR", help="checkpoint folder (default: the one in the box)")
    add(
        "--against",
        metavar="DIR|transformers",
        help="the reference: another folder, or the same by transformers (default: the same)",
    )
    add_architecture_argument(parser)
    add(
        "--against-architecture",
        metavar="FILE.py:CLASS",
        help="class of the reference (default: without --against that of the model)",
    )
    dtypes = ("float64", *choices.DTYPES)
    add("--dtype", choices=dtypes, help="of the model (default: as for kogpt generate)")
    add(
        "--against-dtype",
        choices=dtypes,
        help="of the reference (default: that of the model; of the same folder, a finer one)",
    )
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add_text_arguments(parser)
    add(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest relative error of a layer that is no fault (default: what rounding makes)",
    )
    add("--plot", metavar="FILE", help="draw layers against error: .png, .svg or .pdf")
    add_json_argument(parser, "every tensor's errors")
