"""Checkpoints on the nodes' own disks, between those on the file system that all share.

    save      part of a rank -> its node's disk, a copy -> the disk of the next node        saving.py, partners.py
    start     what the nodes hold between them -> whole and newer? -> written into the shared checkpoints  promoting.py
    LOCAL_DIR/RUN-ID/step-00000020/   small files as of any checkpoint, parts of this node's ranks and of another's

A lost node costs what came after the newest local checkpoint, not after the newest shared one. Nothing is ever resumed
from here: what is promoted is a checkpoint like any other, so a replaced node, another layout or number of ranks need
nothing of their own.
"""
