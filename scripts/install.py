"""Installs requirements into the running Python's environment: by uv where it can, else by pip.

uv is about eight times as fast but does not read pip's configuration. This translates what pip is set up
with (indexes, wheel folders, certificates, proxy) and leaves the work to pip where a setting has no
counterpart in uv, or where uv fails. Takes the arguments of `pip install`; standard library only.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ENVIRONMENT = {
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
REPEATED = {
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}
HARMLESS = {
    "break-system-packages",
    "cache-dir",
    "config-file",
    "disable-pip-version-check",
    "no-cache-dir",
    "no-color",
    "no-compile",
    "no-input",
    "no-python-version-warning",
    "prefer-binary",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "retries",
    "root-user-action",
    "user",
    "verbose",
}


def pip_configuration() -> dict[str, str]:
    """pip's own settings for `pip install`; the environment wins over [install], and that over [global]."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections:
            sections[section][option] = str(ast.literal_eval(value)).strip()
    return sections["global"] | sections["install"] | sections[":env:"]


def uv_arguments(configuration: dict[str, str]) -> tuple[list[str], dict[str, str]] | None:
    """The options and the environment that make uv see what pip sees. None if it cannot."""
    arguments: list[str] = []
    environment: dict[str, str] = {}
    for option, value in configuration.items():
        if not value or option in HARMLESS:
            continue
        if option in ENVIRONMENT:
            environment[ENVIRONMENT[option]] = value
        elif option in REPEATED:
            arguments += [part for item in value.split() for part in (REPEATED[option], item)]
        elif option == "index-url":
            arguments += ["--default-index", value]
        elif option == "no-index":
            arguments += ["--no-index"] if value.lower() in {"1", "true", "yes", "on"} else []
        else:
            return None
    return arguments, environment


def install_with_uv(requirements: list[str]) -> bool:
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    translated = uv_arguments(pip_configuration()) if uv.exists() else None
    if translated is None:
        return False
    arguments, environment = translated
    # pip takes the best match of all indexes; every file is checked against its hash anyway.
    common = [
        "--python",
        sys.executable,
        "--index-strategy",
        "unsafe-best-match",
        "--no-progress",
        "--no-config",
    ]
    command = [str(uv), "pip", "install", *common, *arguments, *requirements]
    return subprocess.run(command, env=os.environ | environment).returncode == 0


def install_with_pip(requirements: list[str]) -> bool:
    command = [sys.executable, "-m", "pip", "install", "--no-input", "--no-compile", *requirements]
    return subprocess.run(command).returncode == 0


def main(requirements: list[str]) -> int:
    return 0 if install_with_uv(requirements) or install_with_pip(requirements) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
