"""The command line: Hydra's, with every mistake reported at once and exit status 2."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from mteb_vllm.errors import CatalogueError, ConfigError, MissingPackageError, Mistake, MtebVllmError

# Flags that only print something: Hydra's own affair.
_PRINTING = ("help", "hydra_help", "cfg", "info", "shell_completion")

# Hydra's flags that would go past our own configuration, and what to do instead.
_REFUSED = {
    "config_path": "Your own files go into a folder given with --config-dir.",
    "config_name": "Your own settings go into an experiment: --config-dir DIR experiment=NAME.",
    "experimental_rerun": "The same command again does what is missing; the settings of a run are in its run.json.",
}


def main() -> NoReturn:
    """Runs `mteb-vllm`.

    Exit status: 0 all is well; 1 something failed; 2 a mistake in the configuration, or a package is missing;
    130 Ctrl-C.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        sys.exit(_main())
    except (ConfigError, MissingPackageError, CatalogueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except MtebVllmError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted; what was done is kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(130)


def _main() -> int:
    if "--version" in sys.argv[1:]:
        from mteb_vllm import __version__

        print(f"mteb-vllm {__version__}")
        return 0
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    from mteb_vllm.config import CONFIG_NAME, conf_dir

    arguments = get_args_parser().parse_intermixed_args()
    # Hydra reads the command line again, and takes no flag between two overrides.
    flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
    sys.argv[1:] = [*arguments.overrides, *flags]
    refused = [
        Mistake(f"--{name.replace('_', '-')}", "not here", _REFUSED[name])
        for name in _REFUSED
        if getattr(arguments, name) is not None
    ]
    commands = [name for name in ("run", "multirun", *_PRINTING) if getattr(arguments, name)]
    if len(commands) > 1:
        refused.append(
            Mistake(" ".join(f"--{name.replace('_', '-')}" for name in commands), "are two different commands")
        )
    if refused:
        raise ConfigError(refused)
    at_home = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)
    try:
        if any(getattr(arguments, name) for name in _PRINTING):
            at_home(lambda cfg: None)()
            return 0
        from mteb_vllm.command import check
        from mteb_vllm.results import RunRecord
        from mteb_vllm.runner import end_sweep, job, terminal

        points = check(arguments.overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
        records: list[RunRecord] = []
        console = terminal()
        at_home(job(records, console))()
    except HydraException as error:
        # What is only printed is not checked, and a plug-in of Hydra's may have its own view of a command.
        from mteb_vllm.overrides import in_words

        raise ConfigError([Mistake("command line", in_words(error))]) from None
    if points[0].swept:
        end_sweep(records, console)
    return int(any(record.status != "ok" for record in records))
