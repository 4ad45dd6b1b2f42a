"""The command line: Hydra's, with all errors of a command reported together and exit status 2."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

from mteb_vllm.errors import CatalogueError, ConfigError, MissingPackageError, Mistake, MtebVllmError
from mteb_vllm.util.escape import visible
from mteb_vllm.util.streams import exit_status, open_standard_streams
from mteb_vllm.util.wrapping import wrap_lines

HELP = """mteb-vllm evaluates embedding models and rerankers on MTEB tasks with vLLM,
configured in YAML. Choose a file from a group with group=file, set a field with
group.field=value, and sweep with -m and values separated by commas.

  # MiniLM on the demo tasks, offline
    mteb-vllm
  # one of the shipped models, and any other model
    mteb-vllm model=e5_small tasks=sts12 engine.dtype=float16
    mteb-vllm model=custom model.name=org/name 'tasks.benchmark="MTEB(eng, v2)"'
  # a sweep: each combination of the values is one point
    mteb-vllm -m engine.dtype=float16,bfloat16 prompts=none,e5
  # check all points, show what would be computed, and stop
    mteb-vllm -m engine.dtype=float16,bfloat16 prompts=none,e5 dry_run=true
  # compare the results of several sweeps
    mteb-vllm pipeline=report runs='outputs/sweeps/*/*'
  # rerank the candidates of a first stage
    mteb-vllm pipeline=rerank model=ms_marco_minilm tasks=nfcorpus
  # compare embeddings and scores with sentence-transformers
    mteb-vllm pipeline=parity
  # a predefined sweep: the cost of padding when texts vary in length
    mteb-vllm experiment=unpadding
  # a search for the fastest engine arguments (extra `search`)
    mteb-vllm experiment=tune_throughput
  # your own files in addition to the shipped ones
    mteb-vllm --config-dir my_conf experiment=mine
  # print the configuration and stop
    mteb-vllm --cfg job

Groups and their files:

{groups}

Flags: --help, -m (--multirun), --config-dir DIR, --cfg job, --info, --version.
--hydra-help lists Hydra's own."""

# Of --help, in characters.
_WIDTH = 80

# Flags of Hydra's that only print something.
_PRINTING = ("hydra_help", "cfg", "info", "shell_completion")

# Hydra's flags that would bypass the configuration of mteb-vllm, and their replacements.
_REFUSED = {
    "config_path": "Put your own files into a folder and pass it with --config-dir.",
    "config_name": "Put your own settings into an experiment: --config-dir DIR experiment=NAME.",
    "experimental_rerun": "Run the same command again: it computes only what is missing. run.json holds a run's settings.",
}


def main() -> NoReturn:
    """Run `mteb-vllm`.

    Exit status: 0 success; 1 something failed; 2 an error in the configuration, or a missing package; 130 Ctrl-C;
    141 standard output was closed by its reader (`| head -1`); 143 a sweep was terminated (SIGTERM).
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    open_standard_streams()
    try:
        status = _main()
    except (ConfigError, MissingPackageError, CatalogueError) as error:
        _print_error(error)
        status = 2
    except MtebVllmError as error:
        _print_error(error)
        status = 1
    except KeyboardInterrupt as error:
        _print_error("Interrupted. Finished results are kept; running the same command again computes the rest.")
        # By the convention of shells, 128 plus the signal's number; a sweep passes the number on.
        status = 128 + (error.args[0] if error.args else signal.SIGINT)
    except SystemExit as ended:  # from argparse, and from Hydra's own --help
        if not isinstance(ended.code, int):
            raise
        status = ended.code
    sys.exit(exit_status(status))


def _print_error(error: object) -> None:
    text = visible(str(error))
    print(wrap_lines(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text, file=sys.stderr)


def _main() -> int:
    if "--version" in sys.argv[1:]:
        from mteb_vllm._version import __version__

        print(f"mteb-vllm {__version__}")
        return 0
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(HELP.format(groups=_groups()))
        return 0
    from mteb_vllm.config.schema import CONFIG_NAME, check_working_folder, conf_dir

    check_working_folder()
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    arguments, unknown = get_args_parser().parse_known_intermixed_args()
    if unknown:
        raise ConfigError([_unknown_flag(word) for word in unknown])
    # Hydra parses the command line again, and does not accept flags between overrides.
    flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
    sys.argv[1:] = [*arguments.overrides, *flags]
    refused = [
        Mistake(f"--{name.replace('_', '-')}", "this Hydra flag is not supported", way)
        for name, way in _REFUSED.items()
        if getattr(arguments, name) is not None
    ]
    if refused:
        raise ConfigError(refused)
    run_hydra = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)
    printing = any(getattr(arguments, name) for name in _PRINTING)
    try:
        if printing:
            from mteb_vllm.preflight.command import register_secrets

            register_secrets(arguments.overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
            run_hydra(lambda cfg: None)()
            return 0
        import psutil

        from mteb_vllm.api import execute
        from mteb_vllm.preflight.command import check
        from mteb_vllm.progress import terminal
        from mteb_vllm.sweep.job import Job

        points = check(arguments.overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
        done = execute(points, terminal(), lambda job: run_hydra(job)(), since=psutil.Process().create_time())
    except Exception as error:
        # Commands that only print are not checked first, and Hydra may refuse one that has passed the checks.
        if not (printing or isinstance(error, HydraException) or _raised_in_hydra(error)):
            raise
        from mteb_vllm.config.overrides import describe_error

        raise ConfigError([Mistake("command line", describe_error(error))]) from None
    if isinstance(done, Job):
        return int(done.failed)
    return int(isinstance(done, list) and any(point.failure is not None for point in done))


def _unknown_flag(word: str) -> Mistake:
    """Return the mistake of a flag that there is not; many are keys of the configuration, which have no dashes."""
    from mteb_vllm.config.schema import RunConfig

    name, _, value = word.strip("-").partition("=")
    key = name.replace("-", "_")
    known = {item.name: item for item in dataclasses.fields(RunConfig)}
    value = value or ("true" if key in known and known[key].type == "bool" else "...")
    near = (f"{key}={value}",) if key.partition(".")[0] in known else ()
    way = "Flags: --help, -m (--multirun), --config-dir DIR, --cfg job, --info, --version. A setting has no dashes: key=value"
    return Mistake(word, "there is no such flag", way, near, code="unknown_key")


def _raised_in_hydra(error: Exception) -> bool:
    """Return whether an error was raised by code of Hydra's or OmegaConf's; its class may be any."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf")


def _groups() -> str:
    """Return the files of each group, including those of --config-dir; without Hydra, whose import takes a second."""
    from mteb_vllm.config.schema import conf_dir, is_choice

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    own = parser.parse_known_args()[0].config_dir
    files: dict[str, set[str]] = {}
    for folder in filter(None, (conf_dir(), own)):
        for file in folder.rglob("*.yaml"):
            group = file.parent.relative_to(folder).as_posix()
            if group != "." and not group.startswith("hydra") and is_choice(file.stem):
                files.setdefault(group, set()).add(file.stem)
    lines = (f"{group}: {', '.join(sorted(files[group]))}" for group in sorted(files))
    return "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="    ") for line in lines)
