"""What the operating system lets one process do."""

import resource

OTHER_FILES = 1024
"""Open files of a rank whatever the number of ranks: shards, logs, libraries, devices."""


def open_all_files_allowed(num_peers: int) -> str:
    """Raises the soft limit of open files to the hard one, before anything connects.

    Returns a sentence when even the hard limit may be too small for a connection to each of `num_peers` in either
    direction, else nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OTHER_FILES + 2 * num_peers
    if hard == resource.RLIM_INFINITY:  # macOS takes no infinite soft limit
        if soft != hard and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return ""
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard >= needed:
        return ""
    return (
        f"open files: this machine allows {hard} to a process, and {num_peers} peers may need {needed}; "
        "ask its operators to raise the hard limit (ulimit -Hn)"
    )
