"""The command line: Hydra's, with every mistake reported at once and exit status 2."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from mteb_vllm.errors import ConfigError, MissingPackageError

# Flags that only print something: Hydra's own affair.
_PRINTING = ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")


def main() -> NoReturn:
    """Runs `mteb-vllm`.

    Exit status: 0 all is well; 1 something failed; 2 a mistake in the configuration, or a package is missing;
    130 Ctrl-C.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        sys.exit(_main())
    except (ConfigError, MissingPackageError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted; what was done is kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(130)


def _main() -> int:
    import hydra
    from hydra._internal.utils import get_args_parser

    from mteb_vllm.config import CONFIG_NAME, conf_dir

    arguments = get_args_parser().parse_args()
    at_home = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)
    if any(getattr(arguments, name, None) for name in _PRINTING):
        at_home(lambda cfg: None)()
        return 0
    from mteb_vllm.command import check
    from mteb_vllm.results import RunRecord
    from mteb_vllm.runner import end_sweep, job, terminal

    check(arguments.overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
    records: list[RunRecord] = []
    console = terminal()
    at_home(job(records, console))()
    if arguments.multirun:
        end_sweep(records, console)
    return int(any(record.status != "ok" for record in records))
