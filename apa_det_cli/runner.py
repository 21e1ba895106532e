"""Run a command: parse its flags, import the user's modules, and return its exit status."""

import logging
import sys
from types import ModuleType


def run_command(command: ModuleType, argv: list[str] | None = None, prog: str | None = None) -> int:
    """Parse a command line and run it.

    Args:
        command: a module with ``parser(prog)`` and ``run(args)``.
        argv: the flags. None: those of this process.
        prog: the name in messages. None: that of the script.

    Returns:
        The exit status: that of ``run`` (None is 0); 2 after a :class:`apa_det.errors.UserError`,
        which is printed as one line; 130 after Ctrl-C. Any other exception is raised, and written
        to the job's log file if there is one.
    """
    parser = command.parser(prog)
    args = parser.parse_args(argv)
    args.prog = parser.prog
    try:
        from apa_det.utils.known_messages import hide_known_messages
        from apa_det.utils.log_file import keep_from_terminal
        from apa_det.utils.user_modules import import_modules

        hide_known_messages()
        logging.basicConfig(format="%(message)s")  # of commands that set up no loggers
        keep_from_terminal(logging.getLogger())
        logging.getLogger("apa_det").setLevel(logging.INFO)
        import_modules(args.imports)
        return command.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        errors = sys.modules.get("apa_det.errors")  # else its import failed before
        status = errors and errors.report(error, parser.prog)
        if status is None:
            raise
        return status
