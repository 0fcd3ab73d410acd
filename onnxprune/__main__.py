"""`python -m onnxprune`, and the script `onnxprune`: Ctrl-C is taken care of before anything else is imported."""

from __future__ import annotations

import sys

from onnxprune.cli.process import guarded, mute_libraries


def main() -> None:
    """Run the command line; exit codes as its help says."""

    def work() -> int:
        if not {"-v", "--verbose"} & set(sys.argv):
            mute_libraries()
        from onnxprune.cli import app

        return app.run(sys.argv[1:])

    raise SystemExit(guarded(work))


if __name__ == "__main__":
    main()
