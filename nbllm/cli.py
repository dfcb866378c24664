"""The command line: `nbllm lab`, `tour`, `train`, `launch`, `runs`, `models`, `fetch`, `cache`, `doctor`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from nbllm.core.errors import UserError, listed
from nbllm.core.io import expand_user
from nbllm.core.terminal import say, shorten, visible_line

EXIT_ERROR = 1  # 2 is argparse's, for a command line that makes no sense
EXIT_INTERRUPTED = 130
MOST_SHOWN = 300  # characters of what was typed

TRAIN_EXAMPLE = """\
example CONFIG.toml:
  [data]
  source = "pydocs"          # or a file, a folder, a pattern, a list of these, a hub name
  validation = 0.1           # the share to hold out, by document; a single one by position; or a file
  # and what nbllm.data.load takes: column, sample_by, encoding, on_error, subset, split, max_bytes
  [tokenizer]
  vocab_size = 2048          # or: kind = "character"; or: path = "my-model"
  [model]
  family = "llama"           # or: path = "my-model", to train it further
  num_layers = 4
  hidden_size = 256
  num_heads = 4
  [train]
  steps = 600                # or: epochs = 3
  lr = 3e-3                  # names of other libraries too: learning_rate, max_steps, block_size, ...

examples:
  nbllm train small.toml
  nbllm train small.toml --name first --folder runs --detach
"""

LAUNCH_HELP = """\
CONFIG.toml is that of nbllm train; [plan] says how the model lies over the processes:
  [plan]
  zero = 3                   # and what nbllm.Plan takes: tensor, pipeline, context, ...

On this machine, 4 processes, each with a GPU where there are so many:
  nbllm launch big.toml --name big --processes 4

On 2 machines that share a disk, 8 processes on each; the same line on both:
  torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
    -m nbllm launch big.toml --name big --folder /shared/runs

On a Slurm cluster, in Python: nbllm.Launch.slurm(nodes=2, processes_per_node=8).write("job.sbatch", config="big.toml")
"""

STEER_EXAMPLES = """

examples:
  nbllm runs steer first set lr=1e-3
  nbllm runs steer first rewind 300 --folder /data/runs
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (an error, on stderr), 2 (usage) or 130 (interrupted)."""
    try:
        options = _options(arguments)
        options.command(options)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        _fail(str(error) or "interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        _give_up(sys.stdout)
        return 0
    except OSError as error:
        where = "" if error.filename is None else f": {shorten(str(error.filename), MOST_SHOWN)}"
        return _fail(f"{error.strerror or error}{where}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _lab:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    return options


def _fail(message: str) -> int:
    """Say what is wrong; a stream that takes no more is given up, or Python would fail on it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr:
                say(f"nbllm: {message}", error=True)
            stream.flush()
        except OSError:
            _give_up(stream)
    return EXIT_ERROR


def _give_up(stream: TextIO) -> None:
    """Send what a stream still holds, and will be given, nowhere."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose messages are as short and harmless as all others."""

    def print_help(self, file: Any = None) -> None:
        say(self.format_help(), end="")  # argparse ignores what cannot be written

    def error(self, message: str) -> NoReturn:
        super().error(visible_line(shorten(message, MOST_SHOWN)))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nbllm",
        description="The notebook-native toolkit for the whole life of a language model.",
        epilog="examples:\n  nbllm lab\n  nbllm tour\n  nbllm doctor\n  nbllm COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    lab = _add(
        commands,
        "lab",
        _lab,
        "open JupyterLab on the tour",
        "Other options are JupyterLab's own.\n\nexamples:\n  nbllm lab\n  nbllm lab --no-browser --port 9000",
    )
    lab.add_argument(
        "notebook", nargs="?", default="00-tour.ipynb", help="a notebook of the project (default: the tour)"
    )
    lab.add_argument("--port", type=int, help="the port JupyterLab listens on")
    lab.add_argument("--no-browser", action="store_true", help="do not open a browser; print the address")

    tour = _add(
        commands,
        "tour",
        _tour,
        "run the tour without a browser",
        "examples:\n  nbllm tour\n  nbllm tour --folder my-tour",
    )
    tour.add_argument("--folder", type=Path, help="where everything is left (default: nbllm-tour-DATE)")

    train = _add(commands, "train", _train, "train as a TOML file says", TRAIN_EXAMPLE)
    train.add_argument("config", type=Path, metavar="CONFIG.toml")
    train.add_argument("--name", help="the run's name")
    train.add_argument(
        "--folder", type=Path, default=Path("runs"), help="where runs are kept (default: runs)"
    )
    train.add_argument(
        "--replace", action="store_true", help="delete an ended run of that name, with its checkpoints"
    )
    train.add_argument("--detach", action="store_true", help="return at once; the run goes on")

    launch = _add(commands, "launch", _launch, "train on several processes as a TOML file says", LAUNCH_HELP)
    launch.add_argument("config", type=Path, metavar="CONFIG.toml")
    launch.add_argument("--name", help="the run's name; under torchrun a run of that name goes on")
    launch.add_argument(
        "--folder", type=Path, default=Path("runs"), help="where runs are kept (default: runs)"
    )
    launch.add_argument("--processes", type=int, default=2, help="how many, without torchrun (default: 2)")
    launch.add_argument("--detach", action="store_true", help="return at once; the run goes on")

    runs = _add(
        commands,
        "runs",
        _list,
        "list, show and steer runs",
        "examples:\n  nbllm runs\n  nbllm runs show first\n  nbllm runs steer first pause",
    )
    runs.set_defaults(folder=Path("runs"))
    kinds = runs.add_subparsers(title="subcommands", metavar="SUBCOMMAND")
    listing = _add(
        kinds, "list", _list, "list the runs of a folder", "example:\n  nbllm runs list --folder /data/runs"
    )
    show = _add(kinds, "show", _show, "show one run", "example:\n  nbllm runs show first")
    show.add_argument("run", help="its name or directory")
    steer = _add(kinds, "steer", _steer, "act on a run", _actions_text() + STEER_EXAMPLES)
    steer.add_argument("run", help="its name or directory")
    steer.add_argument("action", help="what to do; see below")
    steer.add_argument("values", nargs="*", help="what the action takes")
    steer.add_argument("--actor", default="person", help='who asks: "person", "rule:NAME" or "agent:NAME"')
    rename = _add(
        kinds, "rename", _rename, "give a run another name", "example:\n  nbllm runs rename first baseline"
    )
    rename.add_argument("run", help="its name or directory")
    rename.add_argument("name", help="the new name")
    delete = _add(
        kinds,
        "delete",
        _delete,
        "delete runs with their checkpoints",
        "examples:\n  nbllm runs delete first\n  nbllm runs delete first second --yes",
    )
    delete.add_argument("runs", nargs="+", metavar="run", help="its name or directory")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    for sub in (listing, show, steer, rename, delete):
        sub.add_argument(
            "--folder", type=Path, default=Path("runs"), help="where runs are kept (default: runs)"
        )

    _add(commands, "models", _models, "list the published models known by name", "example:\n  nbllm models")
    fetch = _add(
        commands,
        "fetch",
        _fetch,
        "download a published model and verify it",
        "example:\n  nbllm fetch smollm2-135m-instruct",
    )
    fetch.add_argument("name", help="its name; nbllm models lists them")

    cache = _add(
        commands,
        "cache",
        _cache,
        "show what is kept in the cache, or clear it",
        "examples:\n  nbllm cache\n  nbllm cache clear tokens\n  nbllm cache clear --yes",
    )
    cache_kinds = cache.add_subparsers(title="subcommands", metavar="SUBCOMMAND")
    clear = _add(
        cache_kinds, "clear", _clear_cache, "clear the cache", "example:\n  nbllm cache clear tokens"
    )
    clear.add_argument("kind", nargs="?", help="one kind of what nbllm cache lists (default: all)")
    clear.add_argument("--yes", action="store_true", help="do not ask")

    doctor = _add(
        commands, "doctor", _doctor, "what this machine has and how fast it is", "example:\n  nbllm doctor"
    )
    doctor.add_argument("--measure-again", action="store_true", help="measure anew, and keep that")
    return parser


def _add(commands: Any, name: str, command: Any, help_text: str, epilog: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=command)
    return sub


def _lab(options: argparse.Namespace) -> None:
    import subprocess

    from nbllm.notebook import notebooks_folder

    path = notebooks_folder() / options.notebook
    if not path.exists():
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.ipynb")))
        raise UserError(
            f"There is no notebook {options.notebook[:80]!r}.", where=path.parent, hint=f"There are: {known}."
        )
    command = [sys.executable, "-m", "jupyterlab", str(path)]
    if options.port:
        command.append(f"--port={options.port}")
    if options.no_browser:
        command.append("--no-browser")
    if getattr(os, "geteuid", lambda: 1)() == 0 and "--allow-root" not in options.rest:
        # Containers run as root, and JupyterLab refuses to start there without a word of consent.
        say("You are root, so JupyterLab is started with --allow-root.")
        command.append("--allow-root")
    command += options.rest
    code = subprocess.call(command)  # noqa: S603 (our own interpreter)
    if code:
        raise UserError(f"JupyterLab ended with exit code {code}.", hint="Its own messages above say why.")


def _tour(options: argparse.Namespace) -> None:
    from nbllm.notebook import TOUR, execute, notebooks_folder

    folder = options.folder or Path(f"nbllm-tour-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path(os.path.abspath(expand_user(folder)))
    if folder.exists() and any(folder.iterdir()):
        raise UserError("The folder is not empty.", where=folder, hint="Name another one with --folder.")
    say(f"The tour is run in {folder}")
    execute(notebooks_folder() / TOUR, folder, say=say)
    say("It left there:")
    for name in (TOUR, "my-model", "runs", "report.html", "report.md", "report.json"):
        say(f"  {folder / name}")


def _train(options: argparse.Namespace) -> None:
    from nbllm.training.from_file import start_from_file

    if options.replace and options.name is None:
        raise UserError("--replace needs the name of the run to replace.", hint="Give it: --name demo")
    _follow(
        start_from_file(options.config, name=options.name, folder=options.folder, replace=options.replace),
        options,
    )


def _launch(options: argparse.Namespace) -> None:
    from nbllm.distributed.launch import Launch, is_launched

    if is_launched():
        from nbllm.training.torchrun import launch_file

        launch_file(options.config, name=options.name, folder=options.folder)
        return
    from nbllm.training.from_file import start_from_file

    where = Launch(processes=options.processes)
    _follow(
        start_from_file(options.config, name=options.name, folder=options.folder, where=where),
        options,
    )


def _follow(run: Any, options: argparse.Namespace) -> None:
    """Show a run's progress until it ends; Ctrl-C stops it."""
    say(f"{run.path}: started")
    if options.detach:
        return
    run.wait()
    if run.is_live:  # the wait was interrupted
        say("Stopping at the next step, with a checkpoint ...")
        run.stop()
        run.wait(progress=False)
        say(f"Take it up again with: nbllm runs steer {run.name} resume --folder {options.folder}")
        raise KeyboardInterrupt
    say(run)


def _list(options: argparse.Namespace) -> None:
    from nbllm.runs.listing import list_runs

    say(list_runs(options.folder))


def _show(options: argparse.Namespace) -> None:
    from nbllm.runs.text import details

    say(details(_open(options)))


def _steer(options: argparse.Namespace) -> None:
    from nbllm.core.errors import RefusedError, nearest
    from nbllm.runs.actions import find
    from nbllm.runs.asking import WAIT, ask

    run = _open(options, actor=options.actor)
    kind = find(options.action)
    if kind is None or not kind.example:
        hint = nearest(options.action[:80], _typed_actions())
        raise UserError(f"There is no action {options.action[:80]!r}.", hint=hint)
    try:
        args = _arguments(kind, options.values)
        if kind.name == "fork":
            outcome: object = run.fork(args["name"], args.get("step"), **args["changes"])
        elif kind.name in ("resume", "sample"):  # what a trainer is started for, and what has an answer
            outcome = getattr(run, kind.name)(**args)
        else:
            outcome = ask(run, run.actor, kind.name, args, WAIT)
    except RefusedError as error:
        hint = error.hint or f"For example: nbllm runs steer {run.name} {kind.example}"
        raise RefusedError(error.what, where=error.where, hint=hint) from error
    say(outcome)
    if getattr(outcome, "outcome", "applied") == "pending":
        raise UserError("The run has not answered yet.", hint="nbllm runs show says what became of it.")


def _rename(options: argparse.Namespace) -> None:
    from nbllm.runs.locating import locate
    from nbllm.runs.managing import rename

    say(rename(locate(options.run, options.folder), options.name))


def _delete(options: argparse.Namespace) -> None:
    from nbllm.core.quantities import counted, size
    from nbllm.runs.checkpoint import checkpoints
    from nbllm.runs.locating import locate
    from nbllm.runs.managing import delete

    paths = list(dict.fromkeys(locate(run, options.folder) for run in options.runs))
    for path in paths:
        saved = checkpoints(path)
        say(f"{path}: {counted(len(saved), 'checkpoints')}, {size(sum(info.bytes for info in saved))}")
    if not options.yes:
        _confirm("Delete for good?")
    for path in paths:
        left = delete(path)
        say(f"{path}: deleted{f', but for what is no part of the run: {listed(left)}' if left else ''}")


def _confirm(question: str) -> None:
    """Return if a person at the terminal says yes.

    Raises:
        UserError: There is no one to ask, or the answer was no.
    """
    if not sys.stdin.isatty():
        raise UserError("There is no terminal to ask at.", hint="Add --yes to go on without asking.")
    say(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was deleted.")


def _typed_actions() -> dict[str, str]:
    """Return the actions that can be asked for here, each with an example of its arguments."""
    from nbllm.runs.actions import ACTIONS

    return {name: ACTIONS[name].example for name in ACTIONS if ACTIONS[name].example}


def _actions_text() -> str:
    """Return the actions as `--help` lists them: those without arguments on one line."""
    typed = _typed_actions()
    simple = " | ".join(name for name, example in typed.items() if example == name)
    lines = [simple, *(example for name, example in typed.items() if example != name)]
    return "\n  ".join(["actions:", *lines])


def _arguments(kind: Any, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of an action from the words after it: its required ones in order, then name=value.

    Raises:
        UserError: A word is no setting, or one is missing.
        RefusedError: A value is not what the action takes.
    """
    if kind.takes_settings:
        return _assignments(words)
    args = _named(kind, words)
    if kind.name == "fork":  # what it does not take itself are settings of the new run
        args["changes"] = {name: args.pop(name) for name in list(args) if name not in ("name", "step")}
    checked: dict[str, Any] = kind.check(args)
    return checked


def _named(kind: Any, words: Sequence[str]) -> dict[str, Any]:
    arguments = (*kind.required, *kind.optional)
    if words and arguments and arguments[0].kind == "patterns":
        return {arguments[0].name: list(words)}
    if words and arguments and not kind.required and arguments[0].kind == "text":
        return {arguments[0].name: " ".join(words)}
    count = len(kind.required)
    positional = [word for word in words[:count] if "=" not in word]
    given: dict[str, Any] = dict(zip((a.name for a in kind.required), positional, strict=False))
    for name, value in _assignments(words[len(positional) :]).items():
        _expect(name not in given, kind.name, f"its {name} first, without {name}=")
        given[name] = value
    missing = [argument.name for argument in kind.required if argument.name not in given]
    _expect(not missing, kind.name, f"a {' and a '.join(missing)}")
    return given


def _open(options: argparse.Namespace, actor: str = "person") -> Any:
    from nbllm.runs.locating import locate
    from nbllm.training.start import attach

    path = locate(options.run, options.folder)
    # What is resumed or forked from here must outlive this command.
    is_thread = attach(path).record.get("where") == "thread"
    return attach(path, actor=actor, where="process" if is_thread else None)


def _expect(met: bool, action: str, wanted: str) -> None:
    if not met:
        raise UserError(f"{action} takes {wanted}.", hint="See: nbllm runs steer --help")


def _assignments(words: Sequence[str]) -> dict[str, Any]:
    import json

    from nbllm.runs.arguments import short

    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{short(word)} is not a setting.", hint="Write name=value, such as lr=1e-3.")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):  # also a number of thousands of digits, and brackets in brackets
            values[name] = text
    return values


def _models(options: argparse.Namespace) -> None:
    from nbllm.models.zoo.listing import list_models

    say(list_models())


def _fetch(options: argparse.Namespace) -> None:
    from nbllm.models.zoo.fetching import fetch

    say(f"{options.name}: {fetch(options.name)}")


def _cache(options: argparse.Namespace) -> None:
    from nbllm.cached import cache

    say(cache())


def _clear_cache(options: argparse.Namespace) -> None:
    from nbllm.cached import cache
    from nbllm.core.quantities import size

    kept = cache()
    for each in kept.of(options.kind):
        say(f"{each.kind.name}: {size(each.num_bytes)}. {each.kind.lost}")
    if not options.yes:
        _confirm("Delete?")
    say(f"{size(kept.clear(options.kind))} deleted.")


def _doctor(options: argparse.Namespace) -> None:
    from nbllm.nn.compute.doctor import doctor

    say(doctor(measure_again=options.measure_again))
