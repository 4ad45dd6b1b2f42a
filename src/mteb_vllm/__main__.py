"""Run the command line as `python -m mteb_vllm`."""

from mteb_vllm.cli import main

if __name__ == "__main__":
    main()
