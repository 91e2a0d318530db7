"""`vllm bench serve` as a module: the command itself asks for a package that is not named so on CPUs."""

from __future__ import annotations

import argparse
import asyncio

from vllm.benchmarks.serve import add_cli_args, main_async

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    asyncio.run(main_async(parser.parse_args()))
