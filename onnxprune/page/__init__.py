"""The report of a command as one HTML file, and as what a notebook shows: from the data of `--json`, no second time."""
