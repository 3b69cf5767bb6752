"""Completion of a runner's flags, recipes and choices in bash and zsh."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Dict, List

from .config import CONFIGS, names
from .recipes import choices_of
from .schema import kinds

_SCRIPT = """\
# Completion for {program}, in bash and zsh: source this.
[ -n "${{ZSH_VERSION-}}" ] && autoload -U +X bashcompinit && bashcompinit
{function}() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    case "$before" in
{cases}
        *) [[ "$word" == -* ]] && words={flags} ;;
    esac
    COMPREPLY=()
    [ -n "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F {function} {program} ./{program}
"""


def script(parser: argparse.ArgumentParser) -> str:
    """A shell script that completes the words of the parser's program."""
    program = Path(parser.prog).name
    values: Dict[str, List[str]] = {"--config": names(CONFIGS)}
    for name, kind in kinds().items():
        if choices_of(kind):
            values["--" + name.replace("_", "-")] = list(choices_of(kind))
    flags = [
        flag
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for flag in action.option_strings
        if flag.startswith("--")
    ]
    cases = "\n".join(
        f"        {flag}) words={shlex.quote(' '.join(words))} ;;"
        for flag, words in values.items()
        if flag in flags
    )
    return _SCRIPT.format(
        program=program,
        function="_" + re.sub(r"\W", "_", program),
        cases=cases,
        flags=shlex.quote(" ".join(flags)),
    )
