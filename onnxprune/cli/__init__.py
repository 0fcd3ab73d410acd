"""The command line: words become options, options a run, its report tables on the screen."""
