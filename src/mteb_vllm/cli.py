"""The command line: Hydra's, with every mistake reported at once and exit status 2."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from mteb_vllm.errors import CatalogueError, ConfigError, MissingPackageError, Mistake, MtebVllmError
from mteb_vllm.util.escape import visible
from mteb_vllm.util.streams import exit_status, open_standard_streams

HELP = """mteb-vllm evaluates embedding models and rerankers on MTEB tasks with vLLM, from YAML.

Choose a file of a group with group=file, set a field with group.field=value, sweep with -m and commas:

    mteb-vllm                                                # MiniLM on the demo tasks, offline, on a CPU
    mteb-vllm model=e5_small tasks=sts12 engine.dtype=float16
    mteb-vllm model=custom model.name=org/name 'tasks.benchmark="MTEB(eng, v2)"'
    mteb-vllm -m engine.dtype=float16,bfloat16 engine.max_num_seqs=32,128 prompts=none,e5
    mteb-vllm pipeline=rerank model=ms_marco_minilm tasks=nfcorpus pipeline.top_k=50
    mteb-vllm -m ... dry_run=true                            # check every point, say what would be done, and stop
    mteb-vllm pipeline=report runs='outputs/sweeps/*/*'      # compare what they have left, side by side
    mteb-vllm pipeline=parity engine.dtype=bfloat16          # are its numbers those of sentence-transformers?
    mteb-vllm experiment=unpadding                           # a sweep that is written down: is it faster, and when?
    mteb-vllm --config-dir my_conf experiment=mine           # your own files beside the shipped ones
    mteb-vllm --cfg job                                      # print the configuration and stop

Groups and their files:

{groups}

Flags: --help, -m (--multirun), --config-dir DIR, --cfg job, --info, --version; --hydra-help has them all."""

# Flags that only print something: Hydra's own affair.
_PRINTING = ("hydra_help", "cfg", "info", "shell_completion")

# Hydra's flags that would go past our own configuration, and what to do instead.
_REFUSED = {
    "config_path": "Your own files go into a folder given with --config-dir.",
    "config_name": "Your own settings go into an experiment: --config-dir DIR experiment=NAME.",
    "experimental_rerun": "The same command again does what is missing; the settings of a run are in its run.json.",
}


def main() -> NoReturn:
    """Runs `mteb-vllm`.

    Exit status: 0 all is well; 1 something failed; 2 an error in the configuration, or a package is missing;
    130 Ctrl-C; 141 nobody reads what is printed (`| head -1`); 143 a sweep that was asked to end (SIGTERM).
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    open_standard_streams()
    try:
        status = _main()
    except (ConfigError, MissingPackageError, CatalogueError) as error:
        print(visible(str(error)), file=sys.stderr)
        status = 2
    except MtebVllmError as error:
        print(visible(str(error)), file=sys.stderr)
        status = 1
    except KeyboardInterrupt as error:
        print("Interrupted; what was done is kept, and the same command goes on from there.", file=sys.stderr)
        # As shells have it: 128 and the signal's number. A sweep says which one it was.
        status = 128 + (error.args[0] if error.args else signal.SIGINT)
    except SystemExit as ended:  # argparse, and Hydra's own --help
        if not isinstance(ended.code, int):
            raise
        status = ended.code
    sys.exit(exit_status(status))


def _main() -> int:
    if "--version" in sys.argv[1:]:
        from mteb_vllm._version import __version__

        print(f"mteb-vllm {__version__}")
        return 0
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(HELP.format(groups=_groups()))
        return 0
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    from mteb_vllm.config.schema import CONFIG_NAME, conf_dir

    arguments = get_args_parser().parse_intermixed_args()
    # Hydra reads the command line again, and takes no flag between two overrides.
    flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
    sys.argv[1:] = [*arguments.overrides, *flags]
    refused = [
        Mistake(f"--{name.replace('_', '-')}", "not here", way)
        for name, way in _REFUSED.items()
        if getattr(arguments, name) is not None
    ]
    if refused:
        raise ConfigError(refused)
    at_home = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)
    printing = any(getattr(arguments, name) for name in _PRINTING)
    try:
        if printing:
            from mteb_vllm.preflight.command import register_secrets

            register_secrets(arguments.overrides, config_dir=arguments.config_dir)
            at_home(lambda cfg: None)()
            return 0
        from mteb_vllm.api import execute
        from mteb_vllm.preflight.command import check
        from mteb_vllm.progress import terminal
        from mteb_vllm.sweep.job import Job

        points = check(arguments.overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
        done = execute(points, terminal(), lambda job: at_home(job)())
    except Exception as error:
        # What is only printed is not checked, and Hydra may have a view of its own of a command.
        if not (printing or isinstance(error, HydraException) or _raised_in_hydra(error)):
            raise
        from mteb_vllm.config.overrides import describe_error

        raise ConfigError([Mistake("command line", describe_error(error))]) from None
    if isinstance(done, Job):
        return int(done.failed)
    return int(isinstance(done, list) and any(point.failure is not None for point in done))


def _raised_in_hydra(error: Exception) -> bool:
    """Whether Hydra itself raised an error, or OmegaConf at work for it, of whatever class."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf")


def _groups() -> str:
    """The files of each group, the user's own beside the shipped ones, without the time that Hydra takes."""
    from mteb_vllm.config.schema import conf_dir

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    own = parser.parse_known_args()[0].config_dir
    files: dict[str, set[str]] = {}
    for folder in filter(None, (conf_dir(), own)):
        for file in folder.rglob("*.yaml"):
            group = file.parent.relative_to(folder).as_posix()
            if group != "." and not group.startswith("hydra"):
                files.setdefault(group, set()).add(file.stem)
    return "\n".join(f"{group}: {', '.join(sorted(files[group]))}" for group in sorted(files))
